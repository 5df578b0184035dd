/**
 * A growing FIFO of completions that did not come out of a kernel ring: inline results, offloaded
 * calls, CQEs put aside. Thread: iothread.
 */

const CAPACITY_START = 256;

export class CompletionQueue {
  #tokens = new Uint32Array(CAPACITY_START);
  #results = new Float64Array(CAPACITY_START);
  #head = 0;
  #count = 0;

  get length(): number {
    return this.#count;
  }

  push(token: number, result: number): void {
    if (this.#count === this.#tokens.length) this.#grow();
    const at = (this.#head + this.#count++) & (this.#tokens.length - 1);
    this.#tokens[at] = token;
    this.#results[at] = result;
  }

  /** The oldest one's token; not when empty. Its result is what shift() returns. */
  get token(): number {
    return this.#tokens[this.#head]!;
  }

  /** Removes the oldest one. Returns its result. */
  shift(): number {
    const result = this.#results[this.#head]!;
    this.#head = (this.#head + 1) & (this.#tokens.length - 1);
    this.#count--;
    return result;
  }

  #grow(): void {
    const capacity = this.#tokens.length;
    const tokens = new Uint32Array(capacity * 2);
    const results = new Float64Array(capacity * 2);
    for (let i = 0; i < capacity; i++) {
      const at = (this.#head + i) & (capacity - 1);
      tokens[i] = this.#tokens[at]!;
      results[i] = this.#results[at]!;
    }
    this.#tokens = tokens;
    this.#results = results;
    this.#head = 0;
  }
}
