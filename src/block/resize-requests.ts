/**
 * New lengths that clients of an export ask for, as who has a FUSE file may: main decides, as it
 * knows what else stands on the node. The iothread's side. Thread: iothread.
 */
import type { Reactor } from "../io/reactor.ts";
import type { IothreadEvent, IothreadHandlersOf } from "../iothread/messages.ts";
import { assert } from "../util/error.ts";

export interface ResizeRequestsParts {
  readonly reactor: Reactor;
  readonly send: (event: IothreadEvent) => void;
}

export class ResizeRequests {
  #parts: ResizeRequestsParts;
  #waiting = new Map<number, (result: number) => void>();
  #next = 1;

  constructor(parts: ResizeRequestsParts) {
    this.#parts = parts;
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<"node-resized"> = {
    "node-resized": async ({ request, result }) => {
      const resolve = this.#waiting.get(request);
      assert(resolve !== undefined, "a request is answered once");
      this.#waiting.delete(request);
      this.#parts.reactor.asyncResumed();
      resolve(result);
      return null;
    },
  };

  /**
   * `atLeast`: none that is less than it has by then. What is new reads as zeroes. 0 or -errno. In
   * between the node is drained: the caller must not be in the way of that.
   */
  resize(nodeName: string, bytes: number, atLeast: boolean): Promise<number> {
    const request = this.#next++;
    return new Promise((resolve) => {
      this.#waiting.set(request, resolve);
      this.#parts.send({ event: "node-resize", request, nodeName, bytes, atLeast });
    });
  }
}
