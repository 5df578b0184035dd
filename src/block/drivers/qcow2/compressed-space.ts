/**
 * Places for compressed clusters: packed one behind the other, whatever host clusters they lie in.
 * Each counts as one use of every host cluster that it touches. Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Compressed Clusters Descriptor"; block/qcow2-refcount.c
 * qcow2_alloc_bytes()
 */
import { assert } from "../../../util/error.ts";
import { roundUp } from "../../child-io.ts";
import type { Allocator } from "./allocator.ts";
import type { RefcountBlock, Refcounts } from "./refcounts.ts";

export class CompressedSpace {
  #allocator: Allocator;
  #refcounts: Refcounts;
  #clusterBytes: number;
  /** Inside a cluster of compressed ones, where the next one goes; 0: to another cluster. */
  #next = 0;
  /** One after the other: each begins where the last one ends. */
  #last: Promise<number> = Promise.resolve(0);

  constructor(allocator: Allocator, refcounts: Refcounts) {
    this.#allocator = allocator;
    this.#refcounts = refcounts;
    this.#clusterBytes = refcounts.layout.clusterBytes;
  }

  /** Offset of `bytes` bytes, less than a cluster; or -errno. To give it back: free(). */
  allocate(bytes: number): Promise<number> {
    assert(bytes > 0 && bytes < this.#clusterBytes, "what is compressed is shorter");
    this.#last = this.#last.then(() => this.#allocate(bytes));
    return this.#last;
  }

  /** Nothing refers to it. */
  free(offset: number, bytes: number): void {
    const first = Math.floor(offset / this.#clusterBytes);
    const last = Math.floor((offset + bytes - 1) / this.#clusterBytes);
    this.#allocator.free(first * this.#clusterBytes, last - first + 1, "never");
  }

  /** The cluster at `offset` is about to be nobody's, and then somebody else's. */
  onUnused(offset: number): void {
    if (this.#next > offset && this.#next < offset + this.#clusterBytes) this.#next = 0;
  }

  async #allocate(bytes: number): Promise<number> {
    const refcounts = this.#refcounts;
    let at = this.#next;
    for (; at > 0; at = this.#next) {
      const block = await refcounts.load(refcounts.blockIndexOf(this.#clusterOf(at)));
      // Given up meanwhile.
      if (this.#next !== at) continue;
      if (typeof block === "number" || !this.#hasRoom(block, at)) {
        this.#next = 0;
      } else if (bytes <= this.#clusterBytes - (at % this.#clusterBytes)) {
        this.#count(block, at);
        return this.#use(at, bytes);
      } else {
        break;
      }
    }
    const more = await this.#allocator.allocate(1);
    if (typeof more === "number") return more;
    // It may go on where the last one ended, if that is still what it was.
    const isNext = at > 0 && this.#next === at && roundUp(at, this.#clusterBytes) === more.offset;
    const block = isNext ? this.#blockInMemory(at) : null;
    if (block === null || !this.#hasRoom(block, at)) return this.#use(more.offset, bytes);
    this.#count(block, at);
    return this.#use(at, bytes);
  }

  #use(offset: number, bytes: number): number {
    const end = offset + bytes;
    this.#next = end % this.#clusterBytes === 0 ? 0 : end;
    return offset;
  }

  #clusterOf(offset: number): number {
    return Math.floor(offset / this.#clusterBytes);
  }

  #blockInMemory(offset: number): RefcountBlock | null {
    return this.#refcounts.find(this.#refcounts.blockIndexOf(this.#clusterOf(offset)));
  }

  #hasRoom(block: RefcountBlock, offset: number): boolean {
    const refcount = this.#refcounts.get(block, this.#entryOf(offset));
    assert(refcount > 0, "who gives up a cluster says so");
    return refcount < this.#refcounts.layout.refcountMax;
  }

  #count(block: RefcountBlock, offset: number): void {
    const entry = this.#entryOf(offset);
    this.#refcounts.set(block, entry, this.#refcounts.get(block, entry) + 1);
  }

  #entryOf(offset: number): number {
    return this.#clusterOf(offset) % this.#refcounts.layout.refcountBlockEntries;
  }
}
