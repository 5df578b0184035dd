/** Timers of one reactor: a binary heap by deadline. Thread: iothread. */

export interface Timer {
  deadlineNs: number;
  callback: () => void;
  /** Position in the heap; -1 when not set. */
  index: number;
}

export class Timers {
  #heap: Timer[] = [];

  /** When the next one is due; Infinity without any. */
  get nextNs(): number {
    return this.#heap[0]?.deadlineNs ?? Infinity;
  }

  set(deadlineNs: number, callback: () => void): Timer {
    const timer = { deadlineNs, callback, index: this.#heap.length };
    this.#heap.push(timer);
    this.#up(timer.index);
    return timer;
  }

  /** No-op for a timer that ran or was cleared. */
  clear(timer: Timer): void {
    const index = timer.index;
    if (index < 0) return;
    timer.index = -1;
    const last = this.#heap.pop()!;
    if (last === timer) return;
    this.#heap[index] = last;
    last.index = index;
    this.#up(index);
    this.#down(last.index);
  }

  /** Runs what is due at `nowNs`. Timers set meanwhile wait for the next call. */
  run(nowNs: number): void {
    const due: Timer[] = [];
    while (this.nextNs <= nowNs) {
      const timer = this.#heap[0]!;
      this.clear(timer);
      due.push(timer);
    }
    for (const timer of due) timer.callback();
  }

  #up(index: number): void {
    const heap = this.#heap;
    const timer = heap[index]!;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (heap[parent]!.deadlineNs <= timer.deadlineNs) break;
      heap[index] = heap[parent]!;
      heap[index]!.index = index;
      index = parent;
    }
    heap[index] = timer;
    timer.index = index;
  }

  #down(index: number): void {
    const heap = this.#heap;
    const timer = heap[index]!;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]!.deadlineNs < heap[child]!.deadlineNs) child++;
      if (heap[child]!.deadlineNs >= timer.deadlineNs) break;
      heap[index] = heap[child]!;
      heap[index]!.index = index;
      index = child;
    }
    heap[index] = timer;
    timer.index = index;
  }
}
