/**
 * The metadata of an image that is only read: pages of its file, of which a bounded number stays in
 * memory. Looking one up allocates nothing. Thread: iothread; everything async may suspend.
 */
import type { Reactor } from "../io/reactor.ts";
import { strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import { type BlockNode, OP_READ } from "./node.ts";
import { SlowPath } from "./slow-path.ts";

const PAGE_BYTES = 64 * 1024;
/** Sixteen MiB: with blocks of 64 KiB enough for 256 GiB. */
const PAGES_MAX = 256;
/** An entry that begins in a page is all there. */
const ENTRY_BYTES_MAX = 8;
/** Tables are looked through so much at a time. */
const PART_BYTES = 256 * 1024;
/** Longer tables are not looked through before they are used. */
const SCAN_BYTES_MAX = 16 * 1024 * 1024;

/** What seek() found. */
export const PAGE_FOUND = 0;
/** load() brings it. */
export const PAGE_MISSING = 1;
/** The file ends before. */
export const PAGE_OUTSIDE = 2;

class Page {
  readonly start: number;
  readonly view: DataView<ArrayBuffer>;
  /** Looked at since the cache last needed room. */
  used = true;

  constructor(start: number, view: DataView<ArrayBuffer>) {
    this.start = start;
    this.view = view;
  }
}

/** A page that no offset is in. */
function nothing(): Page {
  return new Page(-1, new DataView(new ArrayBuffer(0)));
}

export class ImageTables {
  #reactor: Reactor;
  #file: BlockNode;
  #io: SlowPath;
  #pages = new Map<number, Page>();
  #loading = new Map<number, Promise<number>>();
  /** Memory of pages that are there no longer. */
  #spare: Uint8Array<ArrayBuffer>[] = [];
  #current = nothing();
  #missed = 0;
  #generation = 0;

  constructor(reactor: Reactor, file: BlockNode) {
    this.#reactor = reactor;
    this.#file = file;
    this.#io = new SlowPath(reactor, file);
  }

  /** Of the file, in bytes. */
  get fileBytes(): number {
    return this.#file.bytes;
  }

  /** The same image is in another node. */
  use(file: BlockNode): void {
    this.#file = file;
    this.#io = new SlowPath(this.#reactor, file);
    this.forget();
  }

  forget(): void {
    this.#generation++;
    this.#pages.clear();
    this.#spare = [];
    this.#current = nothing();
  }

  /** Makes the entry at `offset` of the file readable by u32() and others. PAGE_* */
  seek(offset: number, bytes: number): 0 | 1 | 2 {
    if (!(offset + bytes <= this.#file.bytes)) return PAGE_OUTSIDE;
    const start = offset - (offset % PAGE_BYTES);
    if (this.#current.start === start) return PAGE_FOUND;
    const page = this.#pages.get(start);
    if (page === undefined) {
      this.#missed = start;
      return PAGE_MISSING;
    }
    page.used = true;
    this.#current = page;
    return PAGE_FOUND;
  }

  /** At the offset that seek() found. */
  u32(offset: number, littleEndian: boolean): number {
    return this.#current.view.getUint32(offset - this.#current.start, littleEndian);
  }

  /** Brings what the last seek() missed; call it before anything else may seek. 0 or -errno. */
  load(): Promise<number> {
    const start = this.#missed;
    let loading = this.#loading.get(start);
    if (loading === undefined) {
      loading = this.#load(start).finally(() => this.#loading.delete(start));
      this.#loading.set(start, loading);
    }
    return loading;
  }

  async #load(start: number): Promise<number> {
    const generation = this.#generation;
    // What would be garbage otherwise is many times what is kept.
    const bytes = this.#spare.pop() ?? new Uint8Array(PAGE_BYTES + ENTRY_BYTES_MAX);
    const result = await this.#fill(bytes, start);
    if (result < 0 || generation !== this.#generation) {
      this.#spare.push(bytes);
      return result;
    }
    if (this.#pages.size >= PAGES_MAX) this.#evict();
    this.#pages.set(start, new Page(start, new DataView(bytes.buffer)));
    return 0;
  }

  /** Once around takes marks of use away, the second time finds one without. */
  #evict(): void {
    for (let turns = this.#pages.size * 2; turns > 0; turns--) {
      const page = this.#pages.values().next().value!;
      this.#pages.delete(page.start);
      if (!page.used) {
        // Its memory is another page's next.
        if (page === this.#current) this.#current = nothing();
        this.#spare.push(new Uint8Array(page.view.buffer));
        return;
      }
      page.used = false;
      this.#pages.set(page.start, page);
    }
  }

  /** To native memory at `address`; inside the file. 0 or -errno. */
  readFile(offset: number, bytes: number, address: number): Promise<number> {
    return this.#io.run(OP_READ, offset, bytes, address, 0);
  }

  /** Of ordinary memory to native memory at `address`. */
  copyOut(bytes: Uint8Array, address: number): void {
    const { memory } = this.#reactor;
    memory.u8.set(bytes, address - memory.address);
  }

  /** A copy, zeroes behind the end of the file; or -errno. Bounded by the caller. */
  async readBytes(offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer> | number> {
    const result = new Uint8Array(bytes);
    const error = await this.#fill(result, offset);
    return error < 0 ? error : result;
  }

  /** With what the file has at `offset`. 0 or -errno. */
  async #fill(target: Uint8Array, offset: number): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const inside = Math.min(target.length, this.#file.bytes - offset);
    target.fill(0, Math.max(inside, 0) || 0);
    if (!(inside > 0)) return 0;
    const at = await this.#reactor.allocate(Math.min(inside, PART_BYTES));
    let error = 0;
    for (let done = 0; done < inside && error === 0; done += PART_BYTES) {
      const part = Math.min(PART_BYTES, inside - done);
      error = await this.readFile(offset + done, part, memory.address + at);
      if (error === 0) target.set(memory.u8.subarray(at, at + part), done);
    }
    buffers.free(at);
    return error;
  }

  /** As readBytes(). Throws OutportError. */
  async header(offset: number, bytes: number, what: string): Promise<DataView<ArrayBuffer>> {
    const result = await this.readBytes(offset, bytes);
    if (typeof result !== "number") return new DataView(result.buffer);
    throw new OutportError("io", `${what}: ${strerror(result)}`);
  }

  /**
   * Shows all of a table to `see`, whole entries at a time with the offset in the table, unless it
   * is too long. Throws OutportError.
   */
  async scan(
    offset: number,
    bytes: number,
    what: string,
    see: (part: DataView, at: number) => void,
  ): Promise<void> {
    if (bytes > SCAN_BYTES_MAX) return;
    for (let at = 0; at < bytes; at += PART_BYTES) {
      see(await this.header(offset + at, Math.min(PART_BYTES, bytes - at), what), at);
    }
  }
}
