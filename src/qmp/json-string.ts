/**
 * Decodes the text of a JSON string token. Pure.
 * Spec: QEMU qobject/json-parser.c, parse_string()
 */

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
/** What QEMU does not take for a character: U+FFFE, U+FFFF of each plane, U+FDD0..U+FDEF. */
const NONCHARACTER = /\p{Noncharacter_Code_Point}/u;
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

/** The token is no string; the message says why. */
export class BadString extends Error {}

/** `token` has its quotes. Throws a BadString. */
export function decodeString(token: Uint8Array): string {
  const raw = decodeText(token.subarray(1, token.length - 1));
  if (raw === undefined || NONCHARACTER.test(raw))
    throw new BadString("invalid UTF-8 sequence in string");
  return raw.includes("\\") ? resolveEscapes(raw, String.fromCharCode(token[0] as number)) : raw;
}

function decodeText(bytes: Uint8Array): string | undefined {
  try {
    return decoder.decode(bytes);
  } catch {
    const shorter = withPlainNul(bytes);
    return shorter === undefined ? undefined : decodeText(shorter);
  }
}

/** NUL may come as the two bytes that modified UTF-8 has for it. Undefined when it does not. */
function withPlainNul(bytes: Uint8Array): Uint8Array | undefined {
  const kept = bytes.map((byte, at) => (byte === 0xc0 && bytes[at + 1] === 0x80 ? 0 : byte));
  const plain = kept.filter((byte, at) => !(byte === 0x80 && bytes[at - 1] === 0xc0));
  return plain.length === bytes.length ? undefined : plain;
}

function resolveEscapes(raw: string, quote: string): string {
  let text = "";
  let from = 0;
  for (let at = raw.indexOf("\\"); at >= 0; at = raw.indexOf("\\", from)) {
    text += raw.slice(from, at);
    const letter = raw[at + 1] as string;
    if (letter === "u") {
      const { character, end } = unicodeEscape(raw, at, quote);
      text += character;
      from = end;
      continue;
    }
    const character = Object.hasOwn(ESCAPES, letter) ? ESCAPES[letter] : undefined;
    if (character === undefined) throw new BadString("invalid escape sequence in string");
    text += character;
    from = at + 2;
  }
  return text + raw.slice(from);
}

/** One \uXXXX, or two that make a surrogate pair. */
function unicodeEscape(raw: string, at: number, quote: string) {
  const unit = hexUnit(raw, at);
  const second = unit >= 0xd800 && unit <= 0xdbff ? hexUnit(raw, at + 6) : -1;
  const pair = second >= 0xdc00 && second <= 0xdfff;
  const character = pair ? String.fromCharCode(unit, second) : String.fromCharCode(unit);
  const lone = unit >= 0xd800 && unit <= 0xdfff && !pair;
  if (unit < 0 || lone || NONCHARACTER.test(character)) {
    const shown = (raw + quote).slice(at, at + 6);
    throw new BadString(`${shown} is not a valid Unicode character`);
  }
  return { character, end: at + (pair ? 12 : 6) };
}

/** The code unit of the \uXXXX at `at`, or -1. */
function hexUnit(raw: string, at: number): number {
  const match = /^\\u([0-9a-fA-F]{4})$/.exec(raw.slice(at, at + 6));
  return match === null ? -1 : Number.parseInt(match[1] as string, 16);
}
