/**
 * Commands that take several steps: long reads and writes in pieces, reads with holes, block
 * status. Thread: iothread; every method may suspend.
 *
 * None holds a buffer while it waits for another one: a connection's share is always enough.
 */
import { NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FUA, NBD_CMD_READ, NBD_CMD_WRITE } from "../../abi/nbd.ts";
import {
  type BlockStatus,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../block/node.ts";
import { replyBlockStatus } from "./block-status.ts";
import type { NbdConnection } from "./connection.ts";
import { failureMessage } from "./errors.ts";
import { PayloadPipe } from "./payload-pipe.ts";
import { dataHeaderBytes, writeDataHeader, writeHole, writeNone } from "./replies.ts";
import { payloadBytes, type RequestHeader } from "./request.ts";

/** Pieces of one command under way at a time. */
const PIECES_MAX = 4;
const SMALL_BYTES = 4096;
const PAGE_BYTES = 4096;

export class LongCommands {
  /** A long write takes what arrives. */
  receiving = false;
  /** The last command was a long write: the next header is received alone, its payload apart. */
  expectsLongWrite = false;
  #pipe: PayloadPipe | null = null;
  #connection: NbdConnection;
  /** Ends when no reply that must not be interrupted is being sent. */
  #streams: Promise<void> = Promise.resolve();

  constructor(connection: NbdConnection) {
    this.#connection = connection;
  }

  /** The command is counted and ends with its last piece sent, or abandoned. */
  start(header: RequestHeader): void {
    const connection = this.#connection;
    this.expectsLongWrite = header.type === NBD_CMD_WRITE;
    if (header.type === NBD_CMD_READ) {
      connection.reactor.spawn(() => this.#read(header));
    } else if (header.type === NBD_CMD_WRITE) {
      this.receiving = header.bytes > 0;
      connection.reactor.spawn(() => this.#write(header));
    } else {
      this.receiving = payloadBytes(header, connection.session.mode) > 0;
      connection.reactor.spawn(() => replyBlockStatus(connection, header));
    }
  }

  /** The pipe is opened again when a long write comes. */
  closePipe(): void {
    if (this.receiving) return;
    this.#pipe?.close();
    this.#pipe = null;
  }

  /** The payload has been taken: requests follow again. */
  endReceiving(): void {
    this.receiving = false;
    this.#connection.parse();
  }

  async #read(header: RequestHeader): Promise<void> {
    const connection = this.#connection;
    if ((header.flags & NBD_CMD_FLAG_FUA) !== 0) {
      const result = await connection.backend.request(OP_FLUSH, 0, 0, 0, 0);
      if (result < 0) {
        await this.#replyError(header, result, failureMessage(NBD_CMD_READ));
        return;
      }
    }
    if (header.bytes === 0) await this.#replyDone(header);
    else if (!connection.structured) await this.#readStream(header);
    else if ((header.flags & NBD_CMD_FLAG_DF) !== 0) await this.#readStream(header);
    else await this.#readChunks(header);
  }

  /** One chunk per extent or piece, in any order. */
  async #readChunks(header: RequestHeader): Promise<void> {
    const connection = this.#connection;
    const { node } = connection.backend;
    const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    const end = header.offset + header.bytes;
    const pieces: Promise<number>[] = [];
    let error = 0;
    for (let at = header.offset; at < end && error === 0 && !connection.closing; ) {
      const result = node.blockStatus(at, end - at, status);
      error = typeof result === "number" ? result : await result;
      if (error < 0) break;
      const whole = at === header.offset && status.bytes >= header.bytes;
      if ((status.flags & STATUS_ZERO) !== 0 && (status.flags & STATUS_DATA) === 0) {
        const bytes = Math.min(status.bytes, end - at);
        await this.#sendHole(header, at, bytes, whole);
        if (whole) return;
        at += bytes;
        continue;
      }
      const bytes = Math.min(status.bytes, connection.pieceBytes, end - at);
      const only = whole && bytes === header.bytes;
      if (pieces.length === PIECES_MAX) error = await pieces.shift()!;
      pieces.push(this.#readPiece(header, at, bytes, only));
      if (only && (await pieces[0]!) === 0) return;
      at += bytes;
    }
    for (const piece of pieces) error = (await piece) || error;
    if (error < 0) await this.#replyError(header, error, failureMessage(NBD_CMD_READ));
    else await this.#replyNone(header);
  }

  async #sendHole(
    header: RequestHeader,
    offset: number,
    bytes: number,
    last: boolean,
  ): Promise<void> {
    const connection = this.#connection;
    const { view } = connection.reactor.memory;
    const at = await connection.allocate(SMALL_BYTES);
    const length = writeHole(view, at, connection.extended, header, last, offset, bytes);
    connection.send(at, length, at, last);
  }

  /** Returns 0 once the piece is queued, or -errno. `only`: it is the whole reply. */
  async #readPiece(
    header: RequestHeader,
    offset: number,
    bytes: number,
    only: boolean,
  ): Promise<number> {
    const connection = this.#connection;
    const { memory } = connection.reactor;
    const at = await connection.allocate(bytes);
    const address = memory.address + at;
    const result = await connection.backend.request(OP_READ, offset, bytes, address, 0);
    if (result < 0) {
      connection.release(at);
      return result;
    }
    const length = dataHeaderBytes(connection.extended);
    writeDataHeader(memory.view, at - length, connection.extended, header, only, offset, bytes);
    connection.send(at - length, length + bytes, at, only);
    return 0;
  }

  /**
   * One uninterrupted run of data behind one header: a simple reply, or a chunk that the client
   * wants whole. The first piece is read before the header goes out; when a later one fails, the
   * only honest thing left is to drop the connection.
   */
  async #readStream(header: RequestHeader): Promise<void> {
    const before = this.#streams;
    let release = () => {};
    this.#streams = new Promise((resolve) => {
      release = resolve;
    });
    await before;
    await this.#stream(header);
    release();
  }

  async #stream(header: RequestHeader): Promise<void> {
    const connection = this.#connection;
    const { memory } = connection.reactor;
    const { backend } = connection;
    let held = false;
    for (let done = 0; done < header.bytes; ) {
      const bytes = Math.min(header.bytes - done, connection.pieceBytes);
      const at = held ? await connection.allocateForRun(bytes) : await connection.allocate(bytes);
      const address = memory.address + at;
      const result = await backend.request(OP_READ, header.offset + done, bytes, address, 0);
      if (result < 0) {
        connection.release(at);
        if (held) {
          connection.close();
          connection.endHold();
          connection.endCommand();
        } else {
          await this.#replyError(header, result, failureMessage(NBD_CMD_READ));
        }
        return;
      }
      const length = held ? 0 : connection.writeReadHeader(at, header, header.bytes);
      if (!held) connection.hold();
      held = true;
      done += bytes;
      connection.sendNow(at - length, length + bytes, at, done === header.bytes);
    }
    connection.endHold();
  }

  async #write(header: RequestHeader): Promise<void> {
    const connection = this.#connection;
    const { memory } = connection.reactor;
    const pieces: Promise<number>[] = [];
    let error = 0;
    let done = 0;
    if (this.#mayPipe(header)) {
      done = await this.#pipe!.write(
        connection.fd,
        connection.backend,
        header.offset,
        header.bytes,
      );
      error = this.#pipe!.error;
    }
    while (done < header.bytes) {
      const bytes = Math.min(header.bytes - done, connection.pieceBytes);
      if (pieces.length === PIECES_MAX) error = (await pieces.shift()!) || error;
      const at = await connection.allocate(bytes);
      if (!(await connection.receive(at, bytes))) {
        connection.release(at);
        break;
      }
      pieces.push(this.#writePiece(header.offset + done, bytes, memory.address + at, at));
      done += bytes;
    }
    if (header.bytes > 0) this.endReceiving();
    for (const piece of pieces) error = (await piece) || error;
    const fua = (header.flags & NBD_CMD_FLAG_FUA) !== 0 || connection.backend.writethrough;
    if (error === 0 && fua) error = await connection.backend.request(OP_FLUSH, 0, 0, 0, 0);
    if (error === 0) await this.#replyDone(header);
    else await this.#replyError(header, error, failureMessage(NBD_CMD_WRITE));
  }

  /** The payload may go through the pipe: all of it is still in the socket, and whole pages. */
  #mayPipe({ offset, bytes }: RequestHeader): boolean {
    const connection = this.#connection;
    if (connection.closing || connection.availableBytes > 0 || bytes === 0) return false;
    if (offset % PAGE_BYTES !== 0 || bytes % PAGE_BYTES !== 0) return false;
    this.#pipe ??= PayloadPipe.open(connection.reactor);
    return this.#pipe !== null;
  }

  async #writePiece(offset: number, bytes: number, address: number, at: number): Promise<number> {
    const connection = this.#connection;
    const result = await connection.backend.request(OP_WRITE, offset, bytes, address, 0);
    connection.release(at);
    return result;
  }

  /** A closing connection ends the command with the same calls; nothing is sent then. */
  async #replyDone(header: RequestHeader): Promise<void> {
    const at = await this.#connection.allocate(SMALL_BYTES);
    if (header.type === NBD_CMD_READ && this.#connection.structured) this.#sendNone(header, at);
    else this.#connection.replyDone(at, header);
  }

  async #replyNone(header: RequestHeader): Promise<void> {
    this.#sendNone(header, await this.#connection.allocate(SMALL_BYTES));
  }

  #sendNone(header: RequestHeader, at: number): void {
    const { view } = this.#connection.reactor.memory;
    const length = writeNone(view, at, this.#connection.extended, header);
    this.#connection.send(at, length, at, true);
  }

  async #replyError(header: RequestHeader, result: number, message: string): Promise<void> {
    const at = await this.#connection.allocate(SMALL_BYTES);
    this.#connection.replyError(at, header, result, message);
  }
}
