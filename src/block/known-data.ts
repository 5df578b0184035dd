/**
 * Ranges of a file known to hold data, so that reads need not ask the host each time. Forgetting
 * one costs a question; keeping one that became a hole is correct, too: data may be zeroes.
 * Thread: iothread.
 */

/** Binary search and insertion stay well under a microsecond. */
export const RANGES_MAX = 1024;

/** Sorted, apart from each other. */
export class KnownData {
  #starts = new Float64Array(RANGES_MAX);
  #ends = new Float64Array(RANGES_MAX);
  #count = 0;

  get count(): number {
    return this.#count;
  }

  /** True when one range covers [start, end). */
  covers(start: number, end: number): boolean {
    const index = this.#firstEndingAfter(start);
    return index < this.#count && this.#starts[index]! <= start && end <= this.#ends[index]!;
  }

  add(start: number, end: number): void {
    if (start >= end) return;
    // Those that touch the new one, [first, last), become part of it.
    let first = this.#firstEndingAfter(start);
    if (first > 0 && this.#ends[first - 1] === start) first--;
    let last = first;
    while (last < this.#count && this.#starts[last]! <= end) last++;
    if (first === last) {
      if (this.#count === RANGES_MAX) {
        const shortest = this.#shortest();
        if (this.#ends[shortest]! - this.#starts[shortest]! >= end - start) return;
        this.#replace(shortest, shortest + 1, 0);
        if (shortest < first) first--;
      }
      this.#replace(first, first, 1);
      this.#starts[first] = start;
      this.#ends[first] = end;
      return;
    }
    const mergedStart = Math.min(start, this.#starts[first]!);
    const mergedEnd = Math.max(end, this.#ends[last - 1]!);
    this.#replace(first, last, 1);
    this.#starts[first] = mergedStart;
    this.#ends[first] = mergedEnd;
  }

  /** Forgets [start, end). */
  cut(start: number, end: number): void {
    const first = this.#firstEndingAfter(start);
    let last = first;
    while (last < this.#count && this.#starts[last]! < end) last++;
    if (first === last) return;
    const headStart = this.#starts[first]!;
    const tailEnd = this.#ends[last - 1]!;
    this.#replace(first, last, 0);
    this.add(headStart, start);
    this.add(end, tailEnd);
  }

  clear(): void {
    this.#count = 0;
  }

  /** The first range whose end lies after `at`; the count when there is none. */
  #firstEndingAfter(at: number): number {
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ends[middle]! <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #shortest(): number {
    let shortest = 0;
    let bytes = Infinity;
    for (let i = 0; i < this.#count; i++) {
      const length = this.#ends[i]! - this.#starts[i]!;
      if (length < bytes) {
        shortest = i;
        bytes = length;
      }
    }
    return shortest;
  }

  /** Makes room for `count` entries in place of [first, last). */
  #replace(first: number, last: number, count: number): void {
    this.#starts.copyWithin(first + count, last, this.#count);
    this.#ends.copyWithin(first + count, last, this.#count);
    this.#count += count - (last - first);
  }
}
