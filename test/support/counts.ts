/** What test runners say at their end, as numbers. */

export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

export const sentence = ({ passed, failed, skipped }: Counts) =>
  `${passed} passed, ${failed} failed, ${skipped} skipped`;

export function sumOf(all: readonly Counts[]): Counts {
  const sum = { passed: 0, failed: 0, skipped: 0 };
  for (const counts of all) {
    sum.passed += counts.passed;
    sum.failed += counts.failed;
    sum.skipped += counts.skipped;
  }
  return sum;
}

const COLOUR = new RegExp(`${String.fromCharCode(27)}\\[[\\d;]*m`, "g");

/** The text without the codes that colour it. */
export const plain = (text: string) => text.replace(COLOUR, "");

/** The sums that a runner printed at its end; undefined when there are none. */
export function countsOf(output: string): Counts | undefined {
  const text = plain(output);
  const number = (pattern: RegExp, within: string) => Number(pattern.exec(within)?.[1] ?? 0);

  const deno = /^(?:ok|FAILED) \| \d+ passed .*$/m.exec(text)?.[0];
  if (deno !== undefined) {
    return {
      passed: number(/(\d+) passed/, deno),
      failed: number(/(\d+) failed/, deno),
      skipped: number(/(\d+) ignored/, deno),
    };
  }
  const closing = /(?:^ *\d+ \S.*\n)+^Ran \d+ tests? across/m.exec(text)?.[0];
  if (closing === undefined) return undefined;
  return {
    passed: number(/^ *(\d+) pass$/m, closing),
    failed: number(/^ *(\d+) fail$/m, closing),
    skipped: number(/^ *(\d+) skip$/m, closing) + number(/^ *(\d+) todo$/m, closing),
  };
}

/**
 * What a step contributes. One that ends badly, or in which nothing passed, has failed at least
 * once, whatever it printed. A step that is no test runner counts as one test (`whole`).
 */
export function judge(output: string, exitCode: number, whole: boolean): Counts {
  if (whole) {
    return exitCode === 0
      ? { passed: 1, failed: 0, skipped: 0 }
      : { passed: 0, failed: 1, skipped: 0 };
  }
  const counts = countsOf(output) ?? { passed: 0, failed: 0, skipped: 0 };
  const bad = exitCode !== 0 || counts.passed === 0;
  return bad && counts.failed === 0 ? { ...counts, failed: 1 } : counts;
}
