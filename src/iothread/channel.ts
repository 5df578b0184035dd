/**
 * Both ends of the port between main and one iothread: calls with replies, and events. A message is
 * followed by a write to the thread's eventfd, because a reactor sleeps in the kernel only.
 * Thread: IothreadChannel on main, serveCalls() on the iothread.
 */
import { POLLIN } from "../abi/linux.ts";
import { makeToken } from "../io/engine.ts";
import type { Reactor } from "../io/reactor.ts";
import type { Thread, ThreadStart } from "../runtime/driver.ts";
import { OutportError } from "../util/error.ts";
import type {
  ErrorMessage,
  FromIothread,
  IothreadCall,
  IothreadCalls,
  IothreadEvent,
  IothreadHandlersOf,
  ToIothread,
} from "./messages.ts";

interface Pending {
  resolve(reply: unknown): void;
  reject(error: Error): void;
}

/** Main's end. */
export class IothreadChannel {
  onEvent: (event: IothreadEvent) => void = () => {};
  #thread: Thread;
  #wake: () => void;
  #pending = new Map<number, Pending>();
  #seq = 0;
  #broken: OutportError | null = null;

  /** `wake` writes the thread's eventfd. Takes over the thread's onMessage. */
  constructor(thread: Thread, wake: () => void) {
    this.#thread = thread;
    this.#wake = wake;
    thread.onMessage = (message) => this.#onMessage(message as FromIothread);
  }

  /** Rejects with the OutportError that the iothread threw, or when the thread is gone. */
  call<C extends IothreadCall>(call: C, params: IothreadCalls[C][0]): Promise<IothreadCalls[C][1]> {
    if (this.#broken !== null) return Promise.reject(this.#broken);
    const seq = this.#seq++;
    return new Promise((resolve, reject) => {
      this.#pending.set(seq, { resolve: resolve as (reply: unknown) => void, reject });
      this.#thread.send({ call, seq, params } satisfies ToIothread);
      this.#wake();
    });
  }

  /** The thread is gone: calls without a reply fail, and so do later ones. */
  break(error: OutportError): void {
    this.#broken ??= error;
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
  }

  #onMessage(message: FromIothread): void {
    if ("event" in message) {
      this.onEvent(message.event);
      return;
    }
    const pending = this.#pending.get(message.seq);
    if (pending === undefined) return;
    this.#pending.delete(message.seq);
    if ("error" in message) pending.reject(decodeError(message.error));
    else pending.resolve(message.reply);
  }
}

/** One for every call. */
export type IothreadHandlers = IothreadHandlersOf<IothreadCall>;

/**
 * The iothread's end: starts the handler of each call in the order of arrival, whether or not
 * earlier ones have ended; main waits where order matters.
 */
export function serveCalls(
  reactor: Reactor,
  start: ThreadStart,
  wakeFd: number,
  handlers: IothreadHandlers,
): void {
  const kind = reactor.register(() => {
    reactor.linux.drainEventfd(wakeFd);
    arm();
    for (let message = start.receive(); message !== undefined; message = start.receive()) {
      const call = message as ToIothread;
      reactor.spawn(() => answer(start, handlers, call));
    }
  });
  const arm = (): void => reactor.engine.poll(wakeFd, POLLIN, makeToken(kind, 0));
  arm();
}

async function answer(
  start: ThreadStart,
  handlers: IothreadHandlers,
  { call, seq, params }: ToIothread,
): Promise<void> {
  let message: FromIothread;
  try {
    const handler = handlers[call] as (params: unknown) => Promise<unknown>;
    message = { seq, reply: await handler(params) };
  } catch (error) {
    // Anything else is a broken promise of our own code, and ends the thread.
    if (!(error instanceof OutportError)) throw error;
    message = { seq, error: encodeError(error) };
  }
  start.send(message);
}

function encodeError({ kind, message, qapiClass }: OutportError): ErrorMessage {
  return { kind, message, qapiClass };
}

function decodeError({ kind, message, qapiClass }: ErrorMessage): OutportError {
  return new OutportError(kind, message, { qapiClass });
}
