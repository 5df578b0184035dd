/**
 * Large reads of what the host has in memory: their data goes from the page cache to the socket
 * without a copy. Thread: iothread.
 * Spec: sendfile(2), cachestat(2)
 */
import { NBD_CMD_FLAG_FUA, NBD_CMD_READ } from "../../abi/nbd.ts";
import type { Resolution } from "../../block/node.ts";
import { NONE } from "../../io/requests.ts";
import type { NbdConnection } from "./connection.ts";
import { writeDataHeader, writeSimpleReply } from "./replies.ts";
import type { RequestHeader } from "./request.ts";
import type { SendQueue } from "./send-queue.ts";

/** From here on a read is worth a look. */
export const CACHED_BYTES_MIN = 64 * 1024;

export class CachedReads {
  #connection: NbdConnection;
  #queue: SendQueue;
  #where: Resolution = { fd: NONE, offset: 0, bytes: 0 };

  constructor(connection: NbdConnection, queue: SendQueue) {
    this.#connection = connection;
    this.#queue = queue;
  }

  /** The host has all that this request reads: send() may be next. */
  has({ type, flags, offset, bytes }: RequestHeader): boolean {
    const { backend, structured, reactor, fd } = this.#connection;
    if (type !== NBD_CMD_READ || (flags & NBD_CMD_FLAG_FUA) !== 0) return false;
    if (structured && !backend.node.isKnownData(offset, bytes)) return false;
    const where = this.#where;
    if (!backend.findCached(offset, bytes, where)) return false;
    // Nothing is sent: is the call there, and does it take this file and this socket?
    return reactor.linux.sendfile(fd, where.fd, where.offset, 0) === 0;
  }

  /** Queues the reply, its header in the buffer at `at`. False: no descriptor was to be had. */
  send(at: number, header: RequestHeader): boolean {
    const connection = this.#connection;
    const { view } = connection.reactor.memory;
    const { offset, bytes } = header;
    const file = this.#queue.openFile(this.#where.fd, connection.backend.epoch);
    if (file < 0) return false;
    connection.backend.countCached(bytes);
    const length = connection.structured
      ? writeDataHeader(view, at, connection.extended, header, true, offset, bytes)
      : writeSimpleReply(view, at, header, 0);
    connection.send(at, length, at, false);
    this.#queue.pushFile(file, this.#where.offset, bytes, true);
    return true;
  }
}
