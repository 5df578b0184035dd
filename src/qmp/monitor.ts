/**
 * A QMP monitor: the front-end of a character device, which talks with one client after the other.
 * Thread: main. Spec: QEMU monitor/qmp.c
 */
import type { Frontend } from "../chardev/chardev.ts";
import type { Stream } from "../runtime/driver.ts";
import { Session, type SessionParts } from "./session.ts";

export interface MonitorParts extends Omit<SessionParts, "stream"> {
  /** A client is gone. */
  readonly onClosed: () => void;
}

export class Monitor implements Frontend {
  #parts: MonitorParts;
  #session: Session | undefined;

  constructor(parts: MonitorParts) {
    this.#parts = parts;
  }

  opened(stream: Stream): void {
    this.#parts.log("info", "client connected", { monitor: this.#parts.id });
    this.#session = new Session({ ...this.#parts, stream });
  }

  inputEnded(done: () => void): void {
    this.#session?.inputEnded(done);
  }

  closed(): void {
    this.#parts.log("info", "client left", { monitor: this.#parts.id });
    this.detached();
    this.#parts.onClosed();
  }

  detached(): void {
    this.#session?.close();
    this.#session = undefined;
  }
}
