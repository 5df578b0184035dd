/**
 * Reproducible random values for tests: OUTPORT_SEED repeats a run, FUZZ_CASES sizes a fuzz test.
 */

/** A new one unless OUTPORT_SEED is set; printed, so that a failure can be repeated. */
export function randomSeed(): number {
  const seed = Number(process.env.OUTPORT_SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`OUTPORT_SEED=${seed}`);
  return seed;
}

export function fuzzCases(usual: number): number {
  return Number(process.env.FUZZ_CASES ?? usual);
}

/** Small and quick (mulberry32); no more random than tests need. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** From 0, less than `limit`. */
  below(limit: number): number {
    return Math.floor((this.u32() / 2 ** 32) * limit);
  }

  chance(probability: number): boolean {
    return this.u32() < probability * 2 ** 32;
  }

  pick<Value>(values: readonly Value[]): Value {
    return values[this.below(values.length)]!;
  }

  bytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.below(256));
  }
}
