/** The iothreads of the process: starts, finds and stops them. Thread: main. */
import { EFD_NONBLOCK } from "../abi/linux.ts";
import type { Thread, ThreadDriver } from "../runtime/driver.ts";
import type { Linux } from "../runtime/linux.ts";
import { settlesWithin } from "../util/deadline.ts";
import { OutportError } from "../util/error.ts";
import type { Log, Logger } from "../util/log.ts";
import { type TraceState, trace } from "../util/trace.ts";
import { IothreadChannel } from "./channel.ts";
import type {
  IothreadCall,
  IothreadCalls,
  IothreadEvent,
  IothreadStart,
  PollingParameters,
} from "./messages.ts";

/** The built-in iothread: QSD's main loop context. No object can have this id. */
export const MAIN_LOOP = "(main-loop)";
/** How long a thread may take to stop by itself: its last requests are the host's business. */
const STOP_GRACE_MS = 5000;
/**
 * QEMU's default for poll-max-ns. The built-in thread, which has no properties, polls for longer:
 * a client on another processor of a virtual machine takes 60 us to wake up.
 */
const POLL_MAX_NS = 32_768;
export const MAIN_LOOP_POLL_MAX_NS = 98_304;

/** Properties of an iothread object; defaults as QEMU's. 0: built-in grow and shrink. */
export type IothreadOptions = Partial<PollingParameters>;

/** One iothread as managers see it. Tests fake it. */
export interface Iothread {
  readonly id: string;
  /** How many node trees live there: while there is one, the thread stays. */
  userCount: number;
  call<C extends IothreadCall>(call: C, params: IothreadCalls[C][0]): Promise<IothreadCalls[C][1]>;
}

/** What managers use of the pool. Tests fake it. */
export interface Iothreads {
  /** Throws not-found when there is none. */
  get(id: string): Iothread;
  /** Events of every iothread, after the pool's own business with them. */
  onEvent(listener: (iothread: Iothread, event: IothreadEvent) => void): void;
}

export interface IothreadPoolParts {
  readonly driver: ThreadDriver;
  readonly linux: Linux;
  /** OUTPORT_IO_ENGINE. */
  readonly engine: string | undefined;
  /** A thread failed by itself: main ends the process. */
  readonly onCrash: (id: string, error: Error) => void;
  readonly logger: Logger;
}

interface Member extends Iothread {
  readonly thread: Thread;
  readonly channel: IothreadChannel;
  readonly wakeFd: number;
  stopping: boolean;
  /** Resolves when the thread has ended, whatever the reason. */
  readonly ended: Promise<void>;
}

export class IothreadPool implements Iothreads {
  #parts: IothreadPoolParts;
  #members = new Map<string, Member>();
  #starting = new Set<string>();
  #listeners: ((iothread: Iothread, event: IothreadEvent) => void)[] = [];

  #log: Log;
  /** What threads trace, later ones too. */
  #trace: TraceState = { enabled: [], fd: null, format: "text" };

  constructor(parts: IothreadPoolParts) {
    this.#parts = parts;
    this.#log = parts.logger.for("iothread");
  }

  /** Every thread traces that from now on. */
  async setTrace(state: TraceState): Promise<void> {
    this.#trace = state;
    const members = [...this.#members.values()];
    await Promise.all(members.map((member) => member.call("trace-set", state)));
  }

  get(id: string): Iothread {
    const member = this.#members.get(id);
    if (member === undefined) throw new OutportError("not-found", `iothread "${id}" not found`);
    return member;
  }

  has(id: string): boolean {
    return this.#members.has(id);
  }

  onEvent(listener: (iothread: Iothread, event: IothreadEvent) => void): void {
    this.#listeners.push(listener);
  }

  /** Starts a thread; resolves when its reactor runs. */
  async start(id: string, options: IothreadOptions = {}): Promise<void> {
    if (this.#members.has(id) || this.#starting.has(id)) {
      throw new OutportError("in-use", `iothread "${id}" exists`);
    }
    this.#starting.add(id);
    try {
      this.#members.set(id, await this.#startMember(id, options));
      if (trace.iothread_start.enabled) trace.iothread_start.write(id);
    } finally {
      this.#starting.delete(id);
    }
  }

  /** Changes how it polls, while it runs. */
  async configure(id: string, polling: PollingParameters): Promise<void> {
    await this.get(id).call("polling-configure", polling);
  }

  /** Throws in-use while nodes live there. Resolves when it has ended, or its grace is over. */
  async stop(id: string): Promise<void> {
    const member = this.get(id) as Member;
    if (member.userCount > 0) {
      throw new OutportError("in-use", `object '${id}' is in use, can not be deleted`);
    }
    await this.#stopMember(member, STOP_GRACE_MS);
  }

  /** At shutdown: all, the built-in one last. False when one was still busy after `graceMs`. */
  async stopAll(graceMs = STOP_GRACE_MS): Promise<boolean> {
    let all = true;
    for (const member of [...this.#members.values()].reverse()) {
      all = (await this.#stopMember(member, graceMs)) && all;
    }
    return all;
  }

  #startMember(id: string, options: IothreadOptions): Promise<Member> {
    const { driver, linux, engine, logger } = this.#parts;
    const wakeFd = linux.eventfd(0, EFD_NONBLOCK);
    if (wakeFd < 0) throw new OutportError("limit", `Cannot create an eventfd for '${id}'`);
    const start: IothreadStart = {
      id,
      wakeFd,
      pollMaxNs: options.pollMaxNs ?? POLL_MAX_NS,
      pollGrow: options.pollGrow ?? 0,
      pollShrink: options.pollShrink ?? 0,
      engine: checkEngine(engine),
      logLevel: logger.level,
      trace: this.#trace,
    };
    const thread = driver.startThread("iothread", start);
    const channel = new IothreadChannel(thread, () => linux.signalEventfd(wakeFd));
    return new Promise((resolve, reject) => {
      const member: Member = {
        id,
        userCount: 0,
        call: (call, params) => channel.call(call, params),
        thread,
        channel,
        wakeFd,
        stopping: false,
        ended: new Promise((ended) => {
          const fail = (error: Error, expected: boolean): void => {
            channel.break(new OutportError("io", `iothread '${id}' failed`, { cause: error }));
            if (this.#members.get(id) !== member) reject(startFailure(id, error));
            else if (!expected) this.#parts.onCrash(id, error);
            this.#forget(member);
          };
          // At once: what it left behind in the kernel may keep it from ending.
          thread.onError = (error) => fail(error, false);
          thread.onExit = () => {
            linux.close(wakeFd);
            ended();
            fail(new Error(`iothread '${id}' ended by itself`), member.stopping);
          };
        }),
      };
      channel.onEvent = (event) => {
        if (event.event === "ready") resolve(member);
        if (event.event === "log") this.#parts.logger.write(event.record);
        for (const listener of this.#listeners) listener(member, event);
      };
    });
  }

  /** False when the thread is still there after `graceMs`; it then no longer keeps the process. */
  async #stopMember(member: Member, graceMs: number): Promise<boolean> {
    member.stopping = true;
    if (trace.iothread_stop.enabled) trace.iothread_stop.write(member.id);
    // The reply is not of interest: the thread's end is.
    member.channel.call("stop", {}).catch(() => {});
    const ended = await settlesWithin(member.ended, graceMs);
    if (!ended) {
      this.#log("warn", `iothread '${member.id}' does not stop; leaving it behind`);
      member.thread.unref();
      this.#forget(member);
    }
    return ended;
  }

  #forget(member: Member): void {
    if (this.#members.get(member.id) === member) this.#members.delete(member.id);
  }
}

function startFailure(id: string, error: Error): OutportError {
  return new OutportError("io", `Cannot start iothread '${id}': ${error.message}`, {
    cause: error,
  });
}

function checkEngine(name: string | undefined): IothreadStart["engine"] {
  if (name === undefined || name === "io_uring" || name === "epoll") return name;
  throw new OutportError("invalid", `OUTPORT_IO_ENGINE is '${name}': expected io_uring or epoll`);
}
