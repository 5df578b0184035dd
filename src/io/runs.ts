/**
 * Reads, or writes, of adjacent ranges of one file that are asked for one right after the other
 * become one operation, a run: a system call for 4 KiB costs more than the 4 KiB. It is open until
 * something else is asked for; each part of it ends with a result of its own. Thread: iothread.
 */
import { IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../abi/linux.ts";
import type { Linux } from "../runtime/linux.ts";
import type { Token } from "./engine.ts";
import { Memory } from "./memory.ts";
import { NONE } from "./requests.ts";

const PARTS_MAX = 64;
/** Of longer ones the bytes cost more than the calls. */
const BYTES_MAX = 256 * 1024;
/** In flight; what is asked for beyond them becomes no run. */
const RUNS_MAX = 64;

export class Runs {
  // By run.
  readonly isWrite = new Uint8Array(RUNS_MAX);
  readonly fd = new Int32Array(RUNS_MAX);
  readonly offset = new Float64Array(RUNS_MAX);
  readonly bytes = new Float64Array(RUNS_MAX);
  readonly rwFlags = new Int32Array(RUNS_MAX);
  readonly count = new Uint8Array(RUNS_MAX);
  // By part: see partOf().
  readonly tokens = new Uint32Array(RUNS_MAX * PARTS_MAX);
  readonly partAddress = new Float64Array(RUNS_MAX * PARTS_MAX);
  readonly partBytes = new Float64Array(RUNS_MAX * PARTS_MAX);
  /** The one that grows, or NONE. */
  open = NONE;
  #free: number[] = [];
  #memory: Memory;

  constructor(linux: Linux) {
    this.#memory = new Memory(linux, RUNS_MAX * PARTS_MAX * IOVEC_SIZE);
    for (let run = RUNS_MAX - 1; run >= 0; run--) this.#free.push(run);
  }

  /** Where the first part of a run is in the tables, the others behind it. */
  partOf(run: number): number {
    return run * PARTS_MAX;
  }

  /** The open run is of this kind, and ends where this one begins. */
  goesOn(isWrite: 0 | 1, fd: number, bytes: number, offset: number, rwFlags: number): boolean {
    const run = this.open;
    return (
      run !== NONE &&
      this.offset[run]! + this.bytes[run]! === offset &&
      this.fd[run] === fd &&
      this.isWrite[run] === isWrite &&
      this.rwFlags[run] === rwFlags &&
      this.count[run]! < PARTS_MAX &&
      this.bytes[run]! + bytes <= BYTES_MAX
    );
  }

  /** Opens a run without parts. False: too many are in flight. */
  begin(isWrite: 0 | 1, fd: number, offset: number, rwFlags: number): boolean {
    const run = this.#free.pop();
    if (run === undefined) return false;
    this.isWrite[run] = isWrite;
    this.fd[run] = fd;
    this.offset[run] = offset;
    this.bytes[run] = 0;
    this.rwFlags[run] = rwFlags;
    this.count[run] = 0;
    this.open = run;
    return true;
  }

  /** Adds a part to the open run. */
  add(address: number, bytes: number, token: Token): void {
    const run = this.open;
    const part = this.partOf(run) + this.count[run]!;
    this.tokens[part] = token;
    this.partAddress[part] = address;
    this.partBytes[part] = bytes;
    this.bytes[run]! += bytes;
    this.count[run]!++;
  }

  /** Writes the parts of a run as struct iovec. Returns their address, valid until free(). */
  writeIovec(run: number): number {
    const first = this.partOf(run);
    const end = first + this.count[run]!;
    for (let part = first; part < end; part++) {
      this.#memory.setU64(part * IOVEC_SIZE + IOVEC_BASE, this.partAddress[part]!);
      this.#memory.setU64(part * IOVEC_SIZE + IOVEC_LEN, this.partBytes[part]!);
    }
    return this.#memory.address + first * IOVEC_SIZE;
  }

  free(run: number): void {
    this.#free.push(run);
  }

  close(): void {
    this.#memory.unmap();
  }
}
