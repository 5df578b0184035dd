/** Patterns of "*" (any characters) and "?" (one). Pure. Spec: GLib g_pattern_match_simple() */

/**
 * In linear steps per star: peers choose the text. A character is a code point; nothing escapes
 * the two wildcards.
 */
export function matchesGlob(pattern: string, text: string): boolean {
  const wanted = [...pattern];
  const given = [...text];
  let at = 0;
  /** After the last star seen, and where the text of that star ends. */
  let afterStar = -1;
  let starEnd = 0;
  let index = 0;
  while (index < given.length) {
    if (wanted[at] === "*") {
      afterStar = ++at;
      starEnd = index;
    } else if (at < wanted.length && (wanted[at] === "?" || wanted[at] === given[index])) {
      at += 1;
      index += 1;
    } else if (afterStar >= 0) {
      at = afterStar;
      index = ++starEnd;
    } else {
      return false;
    }
  }
  while (wanted[at] === "*") at += 1;
  return at === wanted.length;
}
