/**
 * A connection of a front-end: whole messages in, replies out, descriptors both ways. One receive
 * and one send are under way at most: a front-end that doesn't read its replies is not read from.
 * Thread: iothread.
 * Spec: vhost-user.rst "Communication"; unix(7) SCM_RIGHTS
 */
import { IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../../abi/linux.ts";
import {
  CMSGHDR_ALIGNMENT,
  CMSGHDR_LEN,
  CMSGHDR_LEVEL,
  CMSGHDR_SIZE,
  CMSGHDR_TYPE,
  MSG_CMSG_CLOEXEC,
  MSG_CTRUNC,
  MSG_NOSIGNAL,
  MSGHDR_CONTROL,
  MSGHDR_CONTROLLEN,
  MSGHDR_FLAGS,
  MSGHDR_IOV,
  MSGHDR_IOVLEN,
  MSGHDR_SIZE,
  SCM_RIGHTS,
  SHUT_RDWR,
  SOL_SOCKET,
} from "../../abi/linux-socket.ts";
import {
  VHOST_USER_HDR_SIZE,
  VHOST_USER_MAX_FDS,
  VHOST_USER_NEED_REPLY_MASK,
} from "../../abi/vhost-user.ts";
import { Memory } from "../../io/memory.ts";
import type { CancellableOp, Reactor } from "../../io/reactor.ts";
import { ECANCELED, strerror } from "../../runtime/errno.ts";
import {
  checkHeader,
  checkShape,
  type Message,
  PAYLOAD_BYTES_MAX,
  Payload,
  readHeader,
} from "./message.ts";

const FD_BYTES = 4;
const CONTROL_BYTES = CMSGHDR_SIZE + VHOST_USER_MAX_FDS * FD_BYTES;

// Of each direction: struct msghdr, struct iovec, control data, the message.
const IOV_AT = MSGHDR_SIZE;
const CONTROL_AT = align(IOV_AT + IOVEC_SIZE);
const DATA_AT = align(CONTROL_AT + CONTROL_BYTES);
const SEND_AT = 2048;
const MEMORY_BYTES = 4096;

/** What ended the connection: what the front-end did wrong, or null when it just left. */
export interface Ended {
  readonly fault: string | null;
  /** It has not ended, but was interrupted between two messages. */
  readonly isInterrupted?: boolean;
}

export class MessageSocket {
  readonly fd: number;
  #reactor: Reactor;
  #memory: Memory;
  /** Waits for the first byte of a message. */
  #waiting: CancellableOp | null = null;
  #isInterrupted = false;
  /** receive() said so. */
  #isInterruptTold = false;

  constructor(reactor: Reactor, fd: number) {
    this.#reactor = reactor;
    this.fd = fd;
    this.#memory = new Memory(reactor.linux, MEMORY_BYTES);
  }

  /** The next message, checked for its syntax. Descriptors of a faulty one are closed. */
  async receive(): Promise<Message | Ended> {
    const fds: number[] = [];
    const message = await this.#receive(fds);
    if ("fault" in message) this.closeAll(fds);
    return message;
  }

  /** False: the front-end is gone. `fds` stay the caller's. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<boolean> {
    const memory = this.#memory;
    memory.u8.set(bytes, SEND_AT + DATA_AT);
    for (let done = 0; done < bytes.length; ) {
      // The descriptors go with the first byte.
      const control = done === 0 ? this.#writeControl(fds) : 0;
      this.#writeHeader(SEND_AT, done, bytes.length - done, control);
      const msghdr = memory.address + SEND_AT;
      const result = await this.#reactor.op((engine, token) =>
        engine.sendmsg(this.fd, msghdr, MSG_NOSIGNAL, token),
      );
      if (result <= 0) return false;
      done += result;
    }
    return true;
  }

  /** receive() says so from now on before it begins with another message. */
  interrupt(): void {
    this.#isInterrupted = true;
    this.#waiting?.cancel();
  }

  /** Takes interrupt() back. False: too late. */
  endInterrupt(): boolean {
    this.#isInterrupted = false;
    return !this.#isInterruptTold;
  }

  /** Instead of close(): gives the fd away. */
  detach(): number {
    this.#memory.unmap();
    return this.fd;
  }

  /** Ends receive() and send() soon. */
  shutdown(): void {
    this.#reactor.linux.shutdown(this.fd, SHUT_RDWR);
  }

  /** When nothing is under way. */
  close(): void {
    this.#reactor.linux.close(this.fd);
    this.#memory.unmap();
  }

  closeAll(fds: readonly number[]): void {
    for (const fd of fds) this.#reactor.linux.close(fd);
  }

  async #receive(fds: number[]): Promise<Message | Ended> {
    const data = this.#memory.u8.subarray(DATA_AT, DATA_AT + VHOST_USER_HDR_SIZE);
    const headerFault = await this.#read(VHOST_USER_HDR_SIZE, fds, true);
    if (headerFault !== undefined) return headerFault;
    const header = readHeader(data);
    const fault = checkHeader(header);
    if (fault !== undefined) return { fault };
    const payloadFault = await this.#read(header.bytes, fds, false);
    if (payloadFault !== undefined) return payloadFault;
    const message: Message = {
      request: header.request,
      needsReply: (header.flags & VHOST_USER_NEED_REPLY_MASK) !== 0,
      payload: new Payload(this.#memory.u8.slice(DATA_AT, DATA_AT + header.bytes)),
      fds,
    };
    const shapeFault = checkShape(message);
    return shapeFault === undefined ? message : { fault: shapeFault };
  }

  /** Reads exactly `bytes` to DATA_AT, and descriptors with them; undefined when it has them. */
  async #read(bytes: number, fds: number[], mayEnd: boolean): Promise<Ended | undefined> {
    const memory = this.#memory;
    for (let done = 0; done < bytes; ) {
      this.#writeHeader(0, done, bytes - done, CONTROL_BYTES);
      const isBetween = mayEnd && done === 0;
      if (isBetween && this.#isInterrupted) {
        this.#isInterruptTold = true;
        return { fault: null, isInterrupted: true };
      }
      const receiving = this.#reactor.cancellableOp((engine, token) =>
        engine.recvmsg(this.fd, memory.address, MSG_CMSG_CLOEXEC, token),
      );
      this.#waiting = isBetween ? receiving : null;
      const result = await receiving.result;
      if (result === -ECANCELED) continue;
      if (result < 0) return { fault: `Error while recvmsg: ${strerror(result)}` };
      this.#readControl(fds);
      if ((memory.u32[MSGHDR_FLAGS >>> 2]! & MSG_CTRUNC) !== 0 || fds.length > VHOST_USER_MAX_FDS) {
        return { fault: `A maximum of ${VHOST_USER_MAX_FDS} fds are allowed` };
      }
      if (result === 0) {
        return { fault: mayEnd && done === 0 ? null : "Unexpected end-of-file before all data" };
      }
      done += result;
    }
    return undefined;
  }

  /** The struct msghdr at `at`, for data from its `skip`th byte on. */
  #writeHeader(at: number, skip: number, bytes: number, controlBytes: number): void {
    const memory = this.#memory;
    memory.u8.fill(0, at, at + MSGHDR_SIZE);
    memory.setU64(at + MSGHDR_IOV, memory.address + at + IOV_AT);
    memory.setU64(at + MSGHDR_IOVLEN, 1);
    memory.setU64(at + IOV_AT + IOVEC_BASE, memory.address + at + DATA_AT + skip);
    memory.setU64(at + IOV_AT + IOVEC_LEN, bytes);
    if (controlBytes === 0) return;
    memory.setU64(at + MSGHDR_CONTROL, memory.address + at + CONTROL_AT);
    memory.setU64(at + MSGHDR_CONTROLLEN, controlBytes);
  }

  /** Returns its length. */
  #writeControl(fds: readonly number[]): number {
    if (fds.length === 0) return 0;
    const { view } = this.#memory;
    const at = SEND_AT + CONTROL_AT;
    const bytes = CMSGHDR_SIZE + fds.length * FD_BYTES;
    this.#memory.setU64(at + CMSGHDR_LEN, bytes);
    view.setInt32(at + CMSGHDR_LEVEL, SOL_SOCKET, true);
    view.setInt32(at + CMSGHDR_TYPE, SCM_RIGHTS, true);
    for (const [i, fd] of fds.entries()) view.setInt32(at + CMSGHDR_SIZE + i * FD_BYTES, fd, true);
    return align(bytes);
  }

  /** They are ours from here on. */
  #readControl(fds: number[]): void {
    const { view, u32 } = this.#memory;
    const end = CONTROL_AT + Math.min(u32[MSGHDR_CONTROLLEN >>> 2]!, CONTROL_BYTES);
    for (let at = CONTROL_AT; at + CMSGHDR_SIZE <= end; ) {
      const bytes = u32[(at + CMSGHDR_LEN) >>> 2]!;
      if (bytes < CMSGHDR_SIZE || at + bytes > end) return;
      const level = view.getInt32(at + CMSGHDR_LEVEL, true);
      if (level === SOL_SOCKET && view.getInt32(at + CMSGHDR_TYPE, true) === SCM_RIGHTS) {
        for (let fd = at + CMSGHDR_SIZE; fd + FD_BYTES <= at + bytes; fd += FD_BYTES) {
          fds.push(view.getInt32(fd, true));
        }
      }
      at += align(bytes);
    }
  }
}

function align(bytes: number): number {
  return Math.ceil(bytes / CMSGHDR_ALIGNMENT) * CMSGHDR_ALIGNMENT;
}

if (DATA_AT + VHOST_USER_HDR_SIZE + PAYLOAD_BYTES_MAX > SEND_AT) {
  throw new Error("a message has room");
}
