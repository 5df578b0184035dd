/**
 * System calls that may wait for long, run beside the main thread. Rare: there is a look for their
 * ends every few milliseconds while one is under way, and nothing else otherwise. Thread: main.
 */
import { POLLIN } from "../abi/linux.ts";
import type { ThreadDriver } from "../runtime/driver.ts";
import { EINVAL, ENAMETOOLONG, ETIMEDOUT } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import type { DeferredCall } from "../runtime/linux-mount.ts";
import type { Token } from "./engine.ts";
import { Memory } from "./memory.ts";
import { OffloadPool } from "./offload.ts";

/** Of one call: its strings and its output. A path and some more. */
const MEMORY_BYTES = 16 * 1024;
const ALIGNMENT = 8;
/** How long the main thread itself waits: most calls have ended by then, a timer is no faster. */
const PATIENCE_MS = 1;
/** Between two looks: at first, and at most. */
const LOOK_MS_MIN = 1;
const LOOK_MS_MAX = 16;

interface UnderWay {
  readonly memory: Memory;
  readonly outputAt: number;
  readonly outputBytes: number;
  /** Null: nobody waits any more. */
  resolve: ((result: CallResult) => void) | null;
}

export interface CallResult {
  /** Or the negative errno: -ETIMEDOUT when it goes on without anybody waiting for it. */
  readonly result: number;
  /** What the call wrote. */
  readonly output: Uint8Array;
}

export class BlockingCalls {
  #linux: Linux;
  #driver: Pick<ThreadDriver, "startThread">;
  /** Made for the first call. */
  #pool: OffloadPool | null = null;
  #underWay = new Map<Token, UnderWay>();
  #lastToken = 0;
  #looking = false;

  constructor(linux: Linux, driver: Pick<ThreadDriver, "startThread">) {
    this.#linux = linux;
    this.#driver = driver;
  }

  /** `timeoutMs`: how long to wait; missing: as long as it takes. */
  async run(call: DeferredCall, timeoutMs?: number): Promise<CallResult> {
    if (call.args.some((arg) => typeof arg === "string" && arg.includes("\0"))) {
      return failed(-EINVAL);
    }
    const memory = new Memory(this.#linux, MEMORY_BYTES);
    const placed = place(memory, call);
    if (placed === undefined) {
      memory.unmap();
      return failed(-ENAMETOOLONG);
    }
    const { args, outputAt, outputBytes } = placed;
    this.#pool ??= new OffloadPool({ linux: this.#linux, driver: this.#driver });
    this.#lastToken = (this.#lastToken + 1) >>> 0;
    const token = this.#lastToken;
    const underWay: UnderWay = { memory, outputAt, outputBytes, resolve: null };
    const ended = new Promise<CallResult>((resolve) => {
      underWay.resolve = resolve;
    });
    this.#underWay.set(token, underWay);
    this.#pool.submit(call.number, args, token);
    this.#linux.poll(this.#pool.eventFd, POLLIN, PATIENCE_MS);
    this.#drain();
    void this.#look();
    if (timeoutMs === undefined) return await ended;
    const timer = setTimeout(() => {
      underWay.resolve?.(failed(-ETIMEDOUT));
      underWay.resolve = null;
    }, timeoutMs);
    return await ended.finally(() => clearTimeout(timer));
  }

  /** Ends the threads. One that waits in the kernel stays behind. */
  close(): void {
    const stops = this.#underWay.size === 0;
    if (stops) this.#pool?.stop();
    this.#pool = null;
  }

  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    let ms = LOOK_MS_MIN;
    while (this.#underWay.size > 0 && this.#pool !== null) {
      await new Promise((resolve) => void setTimeout(resolve, ms));
      ms = this.#drain() > 0 ? LOOK_MS_MIN : Math.min(ms * 2, LOOK_MS_MAX);
    }
    this.#looking = false;
  }

  #drain(): number {
    return this.#pool?.drain((token, result) => this.#end(token, result)) ?? 0;
  }

  #end(token: Token, result: number): void {
    const underWay = this.#underWay.get(token)!;
    this.#underWay.delete(token);
    const { memory, outputAt, outputBytes, resolve } = underWay;
    const output = memory.u8.slice(outputAt, outputAt + outputBytes);
    // SAFETY: the call has ended, and what it wrote is copied.
    memory.unmap();
    resolve?.({ result, output });
  }
}

function failed(result: number): CallResult {
  return { result, output: new Uint8Array(0) };
}

interface Placed {
  readonly args: readonly number[];
  readonly outputAt: number;
  readonly outputBytes: number;
}

/** Undefined when its strings are too long. */
function place(memory: Memory, { args }: DeferredCall): Placed | undefined {
  let at = 0;
  let outputAt = 0;
  let outputBytes = 0;
  const numbers: number[] = [];
  for (const arg of args) {
    if (typeof arg === "number") {
      numbers.push(arg);
      continue;
    }
    const from = at;
    if (typeof arg === "string") {
      const target = memory.u8.subarray(at, memory.bytes - 1);
      const { read, written } = new TextEncoder().encodeInto(arg, target);
      if (read < arg.length) return undefined;
      at += written + 1;
    } else {
      outputAt = at;
      outputBytes = arg.bytes;
      at += arg.bytes;
    }
    at = Math.ceil(at / ALIGNMENT) * ALIGNMENT;
    if (at > memory.bytes) return undefined;
    numbers.push(memory.address + from);
  }
  return { args: numbers, outputAt, outputBytes };
}
