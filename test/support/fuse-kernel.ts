/**
 * The kernel's side of FUSE, played by a test: requests go in and answers come out of a pair of
 * sockets that keep messages apart, as /dev/fuse does.
 */
import * as fuse from "../../src/abi/fuse.ts";
import * as file from "../../src/abi/fuse-file.ts";
import { AF_UNIX, SO_SNDBUF, SOCK_NONBLOCK, SOL_SOCKET } from "../../src/abi/linux-socket.ts";
import { Memory } from "../../src/io/memory.ts";
import { EAGAIN } from "../../src/runtime/errno.ts";
import type { Linux } from "../../src/runtime/linux.ts";

const SOCK_SEQPACKET = 5;
/** The host may allow less. */
const SOCKET_BYTES = 4 * 1024 * 1024;
const MESSAGE_BYTES_MAX = 1024 * 1024 + 4096;
const WAIT_MS = 45_000;

export interface FuseReply {
  /** 0 or -errno; of a notification its code. */
  readonly error: number;
  /** 0: a notification. */
  readonly unique: bigint;
  readonly data: Uint8Array;
}

/** What stands for the two ends of a mounted /dev/fuse; all writes of up to some 100 KiB fit. */
export function fuseSockets(linux: Linux): readonly [session: number, kernel: number] {
  const pair = linux.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK);
  if (typeof pair === "number") throw new Error(`No sockets: ${pair}`);
  for (const fd of pair) linux.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, SOCKET_BYTES);
  return pair;
}

export class FuseKernel {
  /** Answers that nobody has asked for yet, by unique. */
  readonly replies = new Map<bigint, FuseReply>();
  readonly notifications: FuseReply[] = [];
  /** Of the requests to come. */
  nodeId = 1n;
  #linux: Linux;
  #fd: number;
  #memory: Memory;
  #pause: () => Promise<void>;
  #unique = 2n;

  /** `pause` gives the session some time. */
  constructor(linux: Linux, fd: number, pause: () => Promise<void>) {
    this.#linux = linux;
    this.#fd = fd;
    this.#pause = pause;
    this.#memory = new Memory(linux, MESSAGE_BYTES_MAX);
  }

  /** One request; its unique. `length` is what its header says, if not the truth. */
  send(opcode: number, args: Uint8Array = new Uint8Array(0), length?: number): bigint {
    const unique = this.#unique;
    this.#unique += 2n;
    const message = new Uint8Array(fuse.FUSE_IN_HEADER_SIZE + args.length);
    const view = new DataView(message.buffer);
    view.setUint32(fuse.FUSE_IN_HEADER_LEN, length ?? message.length, true);
    view.setUint32(fuse.FUSE_IN_HEADER_OPCODE, opcode, true);
    view.setBigUint64(fuse.FUSE_IN_HEADER_UNIQUE, unique, true);
    view.setBigUint64(fuse.FUSE_IN_HEADER_NODEID, this.nodeId, true);
    message.set(args, fuse.FUSE_IN_HEADER_SIZE);
    const result = this.sendRaw(message);
    if (result !== message.length) throw new Error(`Cannot send: ${result}`);
    return unique;
  }

  /** Anything. Returns what write(2) does. */
  sendRaw(message: Uint8Array): number {
    this.#memory.u8.set(message);
    return this.#linux.write(this.#fd, this.#memory.address, message.length);
  }

  /** The answer to a request that was sent. */
  async reply(unique: bigint): Promise<FuseReply> {
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
      this.#receive();
      const reply = this.replies.get(unique);
      this.replies.delete(unique);
      if (reply !== undefined) return reply;
      if (Date.now() > deadline) throw new Error(`No answer to request ${unique}`);
      await this.turn();
    }
  }

  request(opcode: number, args?: Uint8Array): Promise<FuseReply> {
    return this.reply(this.send(opcode, args));
  }

  read(offset: number, bytes: number): Promise<FuseReply> {
    return this.request(fuse.FUSE_READ, readArgs(offset, bytes));
  }

  write(offset: number, data: Uint8Array, flags = 0): Promise<FuseReply> {
    return this.request(fuse.FUSE_WRITE, writeArgs(offset, data, flags));
  }

  /** Lets the session work, then takes what it sent. */
  async turn(): Promise<void> {
    await this.#pause();
    this.#receive();
  }

  async turns(count: number): Promise<void> {
    for (let i = 0; i < count; i++) await this.turn();
  }

  closeKernel(): void {
    this.#linux.close(this.#fd);
    this.#memory.unmap();
  }

  #receive(): void {
    for (;;) {
      const length = this.#linux.read(this.#fd, this.#memory.address, MESSAGE_BYTES_MAX);
      if (length === -EAGAIN || length <= 0) return;
      const { view, u8 } = this.#memory;
      const said = view.getUint32(fuse.FUSE_OUT_HEADER_LEN, true);
      if (said !== length) throw new Error(`An answer of ${length} bytes says ${said}`);
      const reply: FuseReply = {
        error: view.getInt32(fuse.FUSE_OUT_HEADER_ERROR, true),
        unique: view.getBigUint64(fuse.FUSE_OUT_HEADER_UNIQUE, true),
        data: u8.slice(fuse.FUSE_OUT_HEADER_SIZE, length),
      };
      if (reply.unique === 0n) this.notifications.push(reply);
      else if (this.replies.has(reply.unique)) throw new Error(`${reply.unique} answered twice`);
      else this.replies.set(reply.unique, reply);
    }
  }
}

/** A structure of `bytes`: u32 and u64 (as bigint) values by offset. */
export function fields(bytes: number, values: Readonly<Record<number, number | bigint>>) {
  const u8 = new Uint8Array(bytes);
  const view = new DataView(u8.buffer);
  for (const [at, value] of Object.entries(values)) {
    if (typeof value === "bigint") view.setBigUint64(Number(at), value, true);
    else view.setUint32(Number(at), value, true);
  }
  return u8;
}

export function readArgs(offset: number, bytes: number): Uint8Array {
  return fields(file.FUSE_READ_IN_SIZE, {
    [file.FUSE_READ_IN_OFFSET]: BigInt(offset),
    [file.FUSE_READ_IN_SIZE_OF]: bytes,
  });
}

export function writeArgs(offset: number, data: Uint8Array, flags = 0): Uint8Array {
  const args = fields(file.FUSE_WRITE_IN_SIZE + data.length, {
    [file.FUSE_WRITE_IN_OFFSET]: BigInt(offset),
    [file.FUSE_WRITE_IN_SIZE_OF]: data.length,
    [file.FUSE_WRITE_IN_FLAGS]: flags,
  });
  args.set(data, file.FUSE_WRITE_IN_SIZE);
  return args;
}

export function fallocateArgs(mode: number, offset: number, bytes: number): Uint8Array {
  return fields(file.FUSE_FALLOCATE_IN_SIZE, {
    [file.FUSE_FALLOCATE_IN_OFFSET]: BigInt(offset),
    [file.FUSE_FALLOCATE_IN_LENGTH]: BigInt(bytes),
    [file.FUSE_FALLOCATE_IN_MODE]: mode,
  });
}

export function lseekArgs(offset: number, whence: number): Uint8Array {
  return fields(file.FUSE_LSEEK_IN_SIZE, {
    [file.FUSE_LSEEK_IN_OFFSET]: BigInt(offset),
    [file.FUSE_LSEEK_IN_WHENCE]: whence,
  });
}
