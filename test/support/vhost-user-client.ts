/**
 * A small vhost-user front-end for tests, over a connected unix socket: messages as they are told,
 * also wrong ones, and a queue pair of eventfds per vring. It never blocks: `pause` lets the
 * back-end work, be it in this process or in another.
 */
import { EFD_NONBLOCK, IOVEC_BASE, IOVEC_LEN } from "../../src/abi/linux.ts";
import {
  AF_UNIX,
  CMSGHDR_LEN,
  CMSGHDR_LEVEL,
  CMSGHDR_SIZE,
  CMSGHDR_TYPE,
  MSG_CMSG_CLOEXEC,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  MSGHDR_CONTROL,
  MSGHDR_CONTROLLEN,
  MSGHDR_IOV,
  MSGHDR_IOVLEN,
  MSGHDR_SIZE,
  SCM_RIGHTS,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
} from "../../src/abi/linux-socket.ts";
import * as vu from "../../src/abi/vhost-user.ts";
import { Memory } from "../../src/io/memory.ts";
import { EAGAIN } from "../../src/runtime/errno.ts";
import type { Linux } from "../../src/runtime/linux.ts";
import type { RegionOptions } from "../../src/virtio/guest-memory.ts";
import { blkRequest, type DriverQueue, type GuestRam, type Piece } from "./virtio-driver.ts";

const IOV_AT = MSGHDR_SIZE;
const CONTROL_AT = 128;
const CONTROL_BYTES = 512;
const DATA_AT = 1024;
const MEMORY_BYTES = 16384;
const WAIT_MS = 45_000;

export interface Reply {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  readonly fds: readonly number[];
}

export interface ClientParts {
  readonly linux: Linux;
  readonly fd: number;
  /** Gives the back-end some time. */
  readonly pause: () => Promise<void>;
}

/** Connects to a listening socket; the fd, non-blocking. */
export function connectTo(linux: Linux, path: string): number {
  const fd = linux.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
  const result = linux.connect(fd, { type: "unix", path });
  if (result < 0) linux.close(fd);
  return result < 0 ? result : fd;
}

export function words(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

export function longs(...values: (number | bigint)[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(values, BigInt).buffer);
}

export class VhostUserClient {
  readonly linux: Linux;
  readonly fd: number;
  readonly #pause: () => Promise<void>;
  readonly #memory: Memory;

  constructor({ linux, fd, pause }: ClientParts) {
    this.linux = linux;
    this.fd = fd;
    this.#pause = pause;
    this.#memory = new Memory(linux, MEMORY_BYTES);
  }

  /** Returns what sendmsg() does. */
  sendRaw(bytes: Uint8Array, fds: readonly number[] = []): number {
    const memory = this.#memory;
    const control = CMSGHDR_SIZE + fds.length * 4;
    memory.u8.set(bytes, DATA_AT);
    this.#header(bytes.length, fds.length > 0 ? Math.ceil(control / 8) * 8 : 0);
    memory.setU64(CONTROL_AT + CMSGHDR_LEN, control);
    memory.view.setInt32(CONTROL_AT + CMSGHDR_LEVEL, SOL_SOCKET, true);
    memory.view.setInt32(CONTROL_AT + CMSGHDR_TYPE, SCM_RIGHTS, true);
    for (const [i, fd] of fds.entries()) {
      memory.view.setInt32(CONTROL_AT + CMSGHDR_SIZE + i * 4, fd, true);
    }
    return this.linux.sendmsg(this.fd, memory.address, MSG_DONTWAIT | MSG_NOSIGNAL);
  }

  send(
    request: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
    flags = 0,
  ): void {
    const header = words(request, flags | vu.VHOST_USER_VERSION, payload.length);
    this.sendRaw(Uint8Array.of(...header, ...payload), fds);
  }

  /** The next reply; null when the back-end has hung up. Throws when nothing comes. */
  async receive(): Promise<Reply | null> {
    const fds: number[] = [];
    const header = await this.#read(vu.VHOST_USER_HDR_SIZE, fds);
    if (header === null) return null;
    const [request, flags, bytes] = new Uint32Array(header.buffer) as unknown as number[];
    const payload = await this.#read(bytes!, fds);
    if (payload === null) throw new Error("the back-end sent half a message");
    return { request: request!, flags: flags!, payload, fds };
  }

  /** Sends a request that has a reply. Throws when the back-end hangs up instead. */
  async ask(request: number, payload?: Uint8Array, fds?: readonly number[]): Promise<Reply> {
    this.send(request, payload, fds);
    const reply = await this.receive();
    if (reply?.request !== request) throw new Error(`request ${request} was not replied to`);
    return reply;
  }

  async askU64(request: number, payload?: Uint8Array): Promise<bigint> {
    const { payload: reply } = await this.ask(request, payload);
    return new DataView(reply.buffer).getBigUint64(0, true);
  }

  /** Sends a request with need_reply: 0 for success. */
  async tell(request: number, payload?: Uint8Array, fds?: readonly number[]): Promise<bigint> {
    this.send(request, payload, fds, vu.VHOST_USER_NEED_REPLY_MASK);
    const reply = await this.receive();
    if (reply?.request !== request) throw new Error(`request ${request} was not acknowledged`);
    return new DataView(reply.payload.buffer).getBigUint64(0, true);
  }

  /** Waits until `is` says true. Throws when it doesn't. */
  async until(is: () => boolean): Promise<void> {
    const deadline = Date.now() + WAIT_MS;
    while (!is()) {
      if (Date.now() > deadline) throw new Error("the back-end does not do it");
      await this.#pause();
    }
  }

  close(): void {
    this.linux.close(this.fd);
    this.#memory.unmap();
  }

  async #read(bytes: number, fds: number[]): Promise<Uint8Array<ArrayBuffer> | null> {
    const memory = this.#memory;
    const result = new Uint8Array(bytes);
    for (let done = 0; done < bytes; ) {
      let count = -EAGAIN;
      await this.until(() => {
        this.#header(bytes - done, CONTROL_BYTES);
        count = this.linux.recvmsg(this.fd, memory.address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        return count !== -EAGAIN;
      });
      if (count <= 0) return null;
      if (memory.u32[MSGHDR_CONTROLLEN >>> 2]! > 0) {
        const end = CONTROL_AT + memory.u32[(CONTROL_AT + CMSGHDR_LEN) >>> 2]!;
        for (let at = CONTROL_AT + CMSGHDR_SIZE; at < end; at += 4) fds.push(memory.i32[at >>> 2]!);
      }
      result.set(memory.u8.subarray(DATA_AT, DATA_AT + count), done);
      done += count;
    }
    return result;
  }

  #header(bytes: number, controlBytes: number): void {
    const memory = this.#memory;
    memory.u8.fill(0, 0, CONTROL_AT);
    memory.setU64(MSGHDR_IOV, memory.address + IOV_AT);
    memory.setU64(MSGHDR_IOVLEN, 1);
    memory.setU64(IOV_AT + IOVEC_BASE, memory.address + DATA_AT);
    memory.setU64(IOV_AT + IOVEC_LEN, bytes);
    memory.setU64(MSGHDR_CONTROL, controlBytes > 0 ? memory.address + CONTROL_AT : 0);
    memory.setU64(MSGHDR_CONTROLLEN, controlBytes);
  }
}

export function regionWords({ guestAddress, bytes, userAddress, fileOffset }: RegionOptions) {
  return longs(guestAddress, bytes, userAddress, fileOffset);
}

export function memoryTable(regions: readonly RegionOptions[]): Uint8Array {
  return Uint8Array.of(...words(regions.length, 0), ...regions.flatMap((r) => [...regionWords(r)]));
}

/** Takes the features of the back-end that are in `mask`, and protocol features. */
export async function negotiate(client: VhostUserClient, mask: bigint): Promise<bigint> {
  const offered = await client.askU64(vu.VHOST_USER_GET_FEATURES);
  const protocol = await client.askU64(vu.VHOST_USER_GET_PROTOCOL_FEATURES);
  client.send(vu.VHOST_USER_SET_PROTOCOL_FEATURES, longs(protocol));
  await client.tell(vu.VHOST_USER_SET_OWNER);
  await client.tell(vu.VHOST_USER_SET_FEATURES, longs(offered & mask));
  return offered & mask;
}

/** One vring of a client, with its eventfds and a queue of the driver. */
export class ClientQueue {
  readonly index: number;
  readonly queue: DriverQueue;
  readonly kickFd: number;
  readonly callFd: number;
  #client: VhostUserClient;
  #ram: GuestRam;
  #size: number;

  constructor(
    client: VhostUserClient,
    ram: GuestRam,
    queue: DriverQueue,
    { index, size }: { readonly index: number; readonly size: number },
  ) {
    this.#client = client;
    this.#ram = ram;
    this.#size = size;
    this.index = index;
    this.queue = queue;
    this.kickFd = client.linux.eventfd(0, EFD_NONBLOCK);
    this.callFd = client.linux.eventfd(0, EFD_NONBLOCK);
  }

  /** Sets the vring up on `client`, which may be a later one, and starts it. */
  async start(base = 0, client = this.#client): Promise<void> {
    this.#client = client;
    const { desc, avail, used } = this.queue.addresses;
    const addresses = Uint8Array.of(...words(this.index, 0), ...longs(desc, used, avail, 0));
    await client.tell(vu.VHOST_USER_SET_VRING_NUM, words(this.index, this.#size));
    await client.tell(vu.VHOST_USER_SET_VRING_BASE, words(this.index, base));
    await client.tell(vu.VHOST_USER_SET_VRING_ADDR, addresses);
    await client.tell(vu.VHOST_USER_SET_VRING_CALL, longs(this.index), [this.callFd]);
    await client.tell(vu.VHOST_USER_SET_VRING_KICK, longs(this.index), [this.kickFd]);
    await client.tell(vu.VHOST_USER_SET_VRING_ENABLE, words(this.index, 1));
  }

  /** Ends the vring; its base. */
  async stop(): Promise<number> {
    const { payload } = await this.#client.ask(vu.VHOST_USER_GET_VRING_BASE, words(this.index, 0));
    return new DataView(payload.buffer).getUint32(4, true);
  }

  /** Makes a request available, and kicks if it must. Returns where its status will be. */
  submit(type: number, sector: number, data: readonly Piece[]): number {
    const request = blkRequest(this.#ram, type, sector, data);
    if (this.queue.add(request.pieces) < 0) throw new Error("the queue is full");
    this.kick();
    return request.statusAt;
  }

  /** Tells the device of what is available, if it wants to know. */
  kick(): void {
    if (this.queue.mustKick()) this.#client.linux.signalEventfd(this.kickFd);
  }

  /** One request from its start to its end; its status. */
  async request(type: number, sector: number, data: readonly Piece[] = []): Promise<number> {
    const statusAt = this.submit(type, sector, data);
    let count = 0;
    await this.#client.until(() => {
      count += this.queue.collect().length;
      return count > 0;
    });
    return this.#ram.u8[statusAt]!;
  }

  close(): void {
    this.#client.linux.close(this.kickFd);
    this.#client.linux.close(this.callFd);
  }
}
