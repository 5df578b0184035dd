/**
 * A pipe between a socket and a host file: a payload passes through it as references to the
 * socket's own pages, and is copied once, into the page cache. Thread: iothread.
 * Spec: splice(2)
 */
import {
  F_SETPIPE_SZ,
  O_NONBLOCK,
  POLLIN,
  SPLICE_F_MOVE,
  SPLICE_F_NONBLOCK,
} from "../../abi/linux.ts";
import type { BlockBackend } from "../../block/backend.ts";
import { OP_WRITE } from "../../block/node.ts";
import type { Reactor } from "../../io/reactor.ts";
import { EAGAIN, EINTR, EIO } from "../../runtime/errno.ts";
import { assert } from "../../util/error.ts";

/** Asked for; an unprivileged user's limit may leave the usual 64 KiB. */
const PIPE_BYTES = 1024 * 1024;
const PAGE_BYTES = 4096;

export class PayloadPipe {
  #reactor: Reactor;
  #readFd: number;
  #writeFd: number;
  /** Of the last write(). */
  error = 0;
  /** Bytes in the pipe. */
  #held = 0;

  private constructor(reactor: Reactor, readFd: number, writeFd: number) {
    this.#reactor = reactor;
    this.#readFd = readFd;
    this.#writeFd = writeFd;
  }

  /** Null when there is no descriptor for it. */
  static open(reactor: Reactor): PayloadPipe | null {
    const pair = reactor.linux.pipe(O_NONBLOCK);
    if (typeof pair === "number") return null;
    reactor.linux.fcntl(pair.writeFd, F_SETPIPE_SZ, PIPE_BYTES);
    return new PayloadPipe(reactor, pair.readFd, pair.writeFd);
  }

  /**
   * Writes the next `bytes` of the socket at `offset`; both are multiples of 4096. Returns how
   * many it took: fewer when the socket ended, or when the peer sends in such small bits that
   * they clog the pipe. `error` is then the first -errno of a write, or 0.
   */
  async write(
    socketFd: number,
    backend: BlockBackend,
    offset: number,
    bytes: number,
  ): Promise<number> {
    assert(this.#held === 0, "a payload begins with an empty pipe");
    this.error = 0;
    for (let taken = 0, written = 0; ; ) {
      const count = await this.#fill(socketFd, bytes - taken);
      taken += count;
      // Whole pages go on; the rest of the last one waits for what completes it.
      const whole = this.#held - (this.#held % PAGE_BYTES);
      if (whole > 0) await this.#empty(backend, offset + written, whole);
      else if (count === 0) await this.#emptyByHand(backend, offset + written, this.#held);
      written += whole;
      if (taken === bytes || (count === 0 && whole === 0)) return taken;
    }
  }

  close(): void {
    this.#reactor.linux.close(this.#readFd);
    this.#reactor.linux.close(this.#writeFd);
  }

  /** Returns the bytes that came; 0 when no more can come, or the pipe must be emptied first. */
  async #fill(socketFd: number, bytes: number): Promise<number> {
    const { linux } = this.#reactor;
    const flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK;
    for (;;) {
      const result = linux.splice(socketFd, -1, this.#writeFd, -1, bytes, flags);
      if (result > 0) {
        this.#held += result;
        return result;
      }
      if (result !== -EAGAIN && result !== -EINTR) return 0;
      if (this.#held >= PAGE_BYTES) return 0;
      // Data waits, and still the pipe does not take it.
      if (this.#held > 0 && linux.poll(socketFd, POLLIN, 0) > 0) return 0;
      await this.#reactor.op((engine, token) => engine.poll(socketFd, POLLIN, token));
    }
  }

  /** Moves `bytes` that the pipe holds to the node; they are gone even if that fails. */
  async #empty(backend: BlockBackend, offset: number, bytes: number): Promise<void> {
    for (let done = 0; done < bytes; ) {
      let result = -EAGAIN;
      if (this.error === 0) {
        result = backend.writeFromPipe(this.#readFd, bytes - done, offset + done);
      }
      if (result > 0) {
        done += result;
        this.#held -= result;
        if (done % PAGE_BYTES === 0) continue;
      } else if (result !== -EAGAIN) {
        this.error = result === 0 ? -EIO : result;
      }
      await this.#emptyByHand(backend, offset + done, bytes - done);
      return;
    }
  }

  /** As ordinary requests; after an error, throws them away. */
  async #emptyByHand(backend: BlockBackend, offset: number, bytes: number): Promise<void> {
    if (bytes === 0) return;
    const { linux, memory, buffers } = this.#reactor;
    const pieceBytes = Math.min(bytes, PIPE_BYTES / 4);
    const at = await this.#reactor.allocate(pieceBytes);
    const address = memory.address + at;
    for (let done = 0; done < bytes; ) {
      const part = Math.min(bytes - done, pieceBytes);
      const count = linux.read(this.#readFd, address, part);
      if (count === -EINTR) continue;
      assert(count > 0, "the pipe holds what was put into it");
      this.#held -= count;
      if (this.error === 0) {
        this.error = await backend.request(OP_WRITE, offset + done, count, address, 0);
      }
      done += count;
    }
    buffers.free(at);
  }
}
