/** What the tests of an I/O engine stand on: memory, files, sockets, and counted completions. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { O_CREAT, O_RDWR } from "../../../src/abi/linux.ts";
import { AF_UNIX, SOCK_STREAM } from "../../../src/abi/linux-socket.ts";
import {
  type CompletionHandler,
  type EngineOptions,
  type IoEngine,
  makeToken,
  type Token,
} from "../../../src/io/engine.ts";
import { Memory } from "../../../src/io/memory.ts";
import { OffloadPool } from "../../../src/io/offload.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { assert } from "../../../src/util/error.ts";
import { driver } from "../../support/driver.ts";

export type MakeEngine = (options: EngineOptions) => IoEngine;

const MEMORY_BYTES = 64 * 1024 * 1024;
const PATIENCE_NS = 45_000_000_000;

export class Rig {
  readonly linux: Linux;
  readonly memory: Memory;
  readonly engine: IoEngine;
  readonly nowNs = driver.clock.nowNs;
  /** Offload pools that the engine asked for. */
  poolsMade = 0;
  /** By slot. */
  readonly results = new Map<number, number>();
  /** Called for each completion, inside the handler. */
  onCompletion: CompletionHandler = () => {};
  #folder: string | undefined;
  #fds: number[] = [];
  #kind: number;
  #slots = 0;
  #submitting = false;

  constructor(makeEngine: MakeEngine, linux = new Linux(driver.ffi, driver.arch)) {
    this.linux = linux;
    this.memory = new Memory(linux, MEMORY_BYTES);
    const handlers: CompletionHandler[] = [];
    const offload = () => {
      this.poolsMade++;
      return new OffloadPool({ linux, driver });
    };
    const { memory, nowNs } = this;
    this.engine = makeEngine({ linux, memory, handlers, offload, nowNs });
    this.#kind = handlers.push((slot, result) => this.#onCompletion(slot, result)) - 1;
  }

  /** Starts an operation under a new token. Returns its slot. */
  start(submit: (token: Token) => void): number {
    const slot = this.#slots++;
    this.#submitting = true;
    submit(this.token(slot));
    this.#submitting = false;
    return slot;
  }

  token(slot: number): Token {
    return makeToken(this.#kind, slot);
  }

  /** The result of a started operation; waits for it. */
  finish(slot: number): number {
    const untilNs = this.nowNs() + PATIENCE_NS;
    while (!this.results.has(slot)) {
      if (this.nowNs() > untilNs) throw new Error(`Operation ${slot} does not complete`);
      this.engine.wait(1_000_000_000);
    }
    return this.results.get(slot)!;
  }

  run(submit: (token: Token) => void): number {
    return this.finish(this.start(submit));
  }

  /** Lets the engine work for a moment: what doesn't complete then waits for something. */
  settle(): void {
    for (let i = 0; i < 3; i++) this.engine.wait(1_000_000);
  }

  /** A new empty file. */
  file(flags = O_RDWR | O_CREAT): number {
    this.#folder ??= mkdtempSync(`${tmpdir()}/outport-engine-`);
    return this.own(this.linux.open(`${this.#folder}/file${this.#fds.length}`, flags, 0o600));
  }

  path(name: string): string {
    this.#folder ??= mkdtempSync(`${tmpdir()}/outport-engine-`);
    return `${this.#folder}/${name}`;
  }

  sockets(): readonly [number, number] {
    const pair = this.linux.socketpair(AF_UNIX, SOCK_STREAM);
    assert(typeof pair !== "number", "a socket pair");
    return [this.own(pair[0]), this.own(pair[1])];
  }

  /** Closed at the end. */
  own(fd: number): number {
    assert(fd >= 0, `an open descriptor, not ${fd}`);
    this.#fds.push(fd);
    return fd;
  }

  close(fd: number): void {
    this.#fds = this.#fds.filter((each) => each !== fd);
    this.linux.close(fd);
  }

  /** Fills memory with bytes that depend on their distance from the start, and on `seed`. */
  fill(at: number, bytes: number, seed = 0): void {
    const u8 = this.memory.u8;
    for (let i = 0; i < bytes; i++) u8[at + i] = patternByte(i, seed);
  }

  /** Where memory departs from what fill() makes; -1 for nowhere. */
  mismatch(at: number, bytes: number, start = 0, seed = 0): number {
    const u8 = this.memory.u8;
    for (let i = 0; i < bytes; i++) if (u8[at + i] !== patternByte(start + i, seed)) return i;
    return -1;
  }

  end(): void {
    this.engine.close();
    for (const fd of this.#fds) this.linux.close(fd);
    this.memory.unmap();
    if (this.#folder !== undefined) rmSync(this.#folder, { recursive: true });
  }

  #onCompletion(slot: number, result: number): void {
    assert(!this.#submitting, "no handler runs inside a call");
    assert(!this.results.has(slot), `operation ${slot} completes once`);
    this.results.set(slot, result);
    this.onCompletion(slot, result);
  }
}

function patternByte(index: number, seed: number): number {
  return ((Math.imul(index + 1, 0x9e3779b1) >>> 13) ^ (seed * 37 + (index >>> 12))) & 0xff;
}
