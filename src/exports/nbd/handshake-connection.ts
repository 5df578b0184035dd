/**
 * The handshake of one connected socket: moves bytes between the socket and the state machine as
 * far as both go, without ever blocking. Thread: iothread.
 *
 * Spec: NBD proto.md "Handshake phase"
 */
import { POLLIN, POLLOUT } from "../../abi/linux.ts";
import { MSG_DONTWAIT, MSG_NOSIGNAL } from "../../abi/linux-socket.ts";
import type { Memory } from "../../io/memory.ts";
import type { Timer } from "../../io/timers.ts";
import { EAGAIN, EINTR } from "../../runtime/errno.ts";
import type { Linux } from "../../runtime/linux.ts";
import type { Handshake } from "./handshake.ts";

/** Receives and sends in a row; then other connections have their turn. */
const STEPS_MAX = 16;

/** What to do next. */
export type Progress =
  | { readonly wait: number }
  /** Entered transmission, or over for another reason: see the handshake's state. */
  | "done"
  /** The peer went away. */
  | "gone";

const WAIT_IN: Progress = { wait: POLLIN };
const WAIT_OUT: Progress = { wait: POLLOUT };
/** A socket is nearly always writable: comes back in the next turn. */
const NEXT_TURN: Progress = { wait: POLLIN | POLLOUT };

export class HandshakeConnection {
  readonly fd: number;
  readonly handshake: Handshake;
  timer: Timer | null = null;
  /** Received, not used yet. After the handshake it is the beginning of the transmission. */
  rest: Uint8Array = new Uint8Array(0);
  #linux: Linux;
  #scratch: Memory;

  /** `scratch` is shared by all handshakes of the thread; nothing stays in it between calls. */
  constructor(linux: Linux, scratch: Memory, fd: number, handshake: Handshake) {
    this.#linux = linux;
    this.#scratch = scratch;
    this.fd = fd;
    this.handshake = handshake;
  }

  advance(): Progress {
    for (let step = 0; step < STEPS_MAX; step++) {
      const sent = this.#send();
      if (sent !== null) return sent;
      if (this.handshake.state !== "haggling") return "done";
      const used = this.handshake.feed(this.rest);
      this.rest = this.rest.subarray(used);
      if (this.handshake.outputBytes > 0 || this.handshake.state !== "haggling") continue;
      const received = this.#receive();
      if (received !== null) return received;
    }
    return NEXT_TURN;
  }

  /** Null when all output is sent. */
  #send(): Progress | null {
    while (this.handshake.outputBytes > 0) {
      const bytes = this.handshake.copyOutput(this.#scratch.u8);
      const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
      const result = this.#linux.send(this.fd, this.#scratch.address, bytes, flags);
      if (result === -EAGAIN) return WAIT_OUT;
      if (result === -EINTR) continue;
      if (result < 0) return "gone";
      this.handshake.advanceOutput(result);
    }
    return null;
  }

  /** Null when something came. */
  #receive(): Progress | null {
    const { address, bytes, u8 } = this.#scratch;
    const result = this.#linux.recv(this.fd, address, bytes, MSG_DONTWAIT);
    if (result === -EAGAIN || result === -EINTR) return WAIT_IN;
    if (result <= 0) return "gone";
    this.rest = u8.slice(0, result);
    return null;
  }
}
