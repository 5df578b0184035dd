/**
 * The FUSE requests that take several steps: what changes the length of the disk, fallocate and
 * seeking for data and holes. Thread: iothread; everything may suspend.
 * Spec: fallocate(2), lseek(2); QEMU block/export/fuse.c
 */
import * as fuse from "../../abi/fuse.ts";
import * as file from "../../abi/fuse-file.ts";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  SEEK_DATA,
  SEEK_HOLE,
} from "../../abi/linux.ts";
import {
  type BlockStatus,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_DATA,
} from "../../block/node.ts";
import { EACCES, EFBIG, EINVAL, ENOTSUP, ENXIO } from "../../runtime/errno.ts";
import { writeOpen } from "./fixed-answers.ts";
import type { OpenAnswer } from "./passthrough.ts";
import type { FuseSession } from "./session.ts";
import type { FuseRequest, FuseTransport } from "./transport.ts";

/** Extents looked at in one go; then others have their turn. */
const EXTENTS_PER_TURN = 256;
/** No disk is longer; and what is added to it stays exact. */
const LENGTH_MAX = 2 ** 53 - 2 ** 32;

/**
 * Gives the node another length, `atLeast` none that is less than it has; new bytes read as zeroes.
 * 0 or -errno.
 */
export type Resize = (bytes: number, atLeast: boolean) => Promise<number>;

interface Range {
  readonly offset: number;
  readonly bytes: number;
}

interface WriteAsked extends Range {
  /** REQ_FUA or 0. */
  readonly flags: number;
}

export class LongRequests {
  #session: FuseSession;
  #resize: Resize;
  #resizes = 0;
  /** The greatest length that somebody waits for, while nobody asks for it yet. */
  #growsTo = 0;
  /** The one before: a length is changed by one request after the other. */
  #lastResize: Promise<unknown> = Promise.resolve();

  constructor(session: FuseSession, resize: Resize) {
    this.#session = session;
    this.#resize = resize;
  }

  get isResizing(): boolean {
    return this.#resizes > 0;
  }

  /** A WRITE that does not end inside of the disk. */
  write(transport: FuseTransport, asked: WriteAsked): void {
    this.writeKept(transport, this.#session.keep(transport, file.FUSE_WRITE_OUT_SIZE), asked);
  }

  writeKept(transport: FuseTransport, at: number, { offset, bytes, flags }: WriteAsked): void {
    const session = this.#session;
    const { reactor, backend, growable } = session;
    reactor.spawn(async () => {
      if (growable && bytes > 0) {
        const grown = await this.#growTo(offset + bytes);
        if (grown < 0) {
          session.finish(transport, at, grown, 0);
          return;
        }
      }
      const inside = Math.min(bytes, backend.node.bytes - offset);
      if (inside > 0) {
        session.submit(transport, at, OP_WRITE, offset, inside, flags);
        return;
      }
      reactor.memory.u8.fill(0, at, at + file.FUSE_WRITE_OUT_SIZE);
      session.finish(transport, at, 0, file.FUSE_WRITE_OUT_SIZE);
    });
  }

  /** An OPEN that leaves nothing of the file. */
  openEmpty(transport: FuseTransport, answer: OpenAnswer): void {
    const session = this.#session;
    const { reactor } = session;
    const at = session.keep(transport);
    reactor.spawn(async () => {
      const result = await this.#resizeTo(0);
      if (result < 0) session.passthrough?.release(answer.handle);
      const length = result < 0 ? 0 : writeOpen(reactor.memory, at, answer);
      session.finish(transport, at, result, length);
    });
  }

  setAttributes({ argsAt, at: requestAt }: FuseRequest, transport: FuseTransport): void {
    const session = this.#session;
    const { reactor, attributes } = session;
    const { memory } = reactor;
    const u32 = (field: number) => memory.view.getUint32(argsAt + field, true);
    const valid = u32(file.FUSE_SETATTR_IN_VALID);
    const wanted = {
      mode: u32(file.FUSE_SETATTR_IN_MODE),
      uid: u32(file.FUSE_SETATTR_IN_UID),
      gid: u32(file.FUSE_SETATTR_IN_GID),
    };
    const bytes = memory.getU64(argsAt + file.FUSE_SETATTR_IN_SIZE_OF);
    const refusal = attributes.check(valid, wanted.mode);
    if (refusal < 0) {
      transport.reply(requestAt, refusal, 0);
      return;
    }
    const at = session.keep(transport);
    reactor.spawn(async () => {
      const isResize = (valid & fuse.FATTR_SIZE) !== 0;
      const result = isResize ? await this.#resizeTo(bytes) : 0;
      if (result === 0) attributes.set(valid, wanted);
      session.finish(transport, at, result, result === 0 ? attributes.write(memory, at) : 0);
    });
  }

  fallocate({ argsAt, at: requestAt }: FuseRequest, transport: FuseTransport): void {
    const session = this.#session;
    const { memory } = session.reactor;
    if (!session.backend.writable) {
      transport.reply(requestAt, -EACCES, 0);
      return;
    }
    const mode = memory.view.getUint32(argsAt + file.FUSE_FALLOCATE_IN_MODE, true);
    const range = {
      offset: memory.getU64(argsAt + file.FUSE_FALLOCATE_IN_OFFSET),
      bytes: memory.getU64(argsAt + file.FUSE_FALLOCATE_IN_LENGTH),
    };
    const at = session.keep(transport);
    session.reactor.spawn(async () => {
      session.finish(transport, at, await this.#allocate(mode, range), 0);
    });
  }

  seek({ argsAt, at: requestAt }: FuseRequest, transport: FuseTransport): void {
    const session = this.#session;
    const { memory } = session.reactor;
    const offset = memory.getU64(argsAt + file.FUSE_LSEEK_IN_OFFSET);
    const whence = memory.view.getUint32(argsAt + file.FUSE_LSEEK_IN_WHENCE, true);
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) {
      transport.reply(requestAt, -EINVAL, 0);
      return;
    }
    const at = session.keep(transport);
    session.reactor.spawn(async () => {
      const found = await this.#find(whence === SEEK_DATA, offset);
      if (found >= 0) memory.setU64(at + file.FUSE_LSEEK_OUT_OFFSET, found);
      const bytes = found >= 0 ? file.FUSE_LSEEK_OUT_SIZE : 0;
      session.finish(transport, at, Math.min(found, 0), bytes);
    });
  }

  async #allocate(mode: number, { offset, bytes: asked }: Range): Promise<number> {
    const { node } = this.#session.backend;
    const keepsSize = (mode & FALLOC_FL_KEEP_SIZE) !== 0;
    const bytes = keepsSize ? Math.min(asked, node.bytes - offset) : asked;
    if (mode === 0) {
      if (offset < node.bytes) return -ENOTSUP;
      const result = await this.#growTo(offset + bytes);
      return result < 0 ? result : this.#zero(offset, bytes, 0);
    }
    if ((mode & FALLOC_FL_PUNCH_HOLE) !== 0) {
      if (!keepsSize) return -EINVAL;
      return this.#zero(offset, bytes, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
    }
    if ((mode & FALLOC_FL_ZERO_RANGE) === 0) return -ENOTSUP;
    if (!keepsSize && offset + bytes > node.bytes) {
      const result = await this.#growTo(offset + bytes);
      if (result < 0) return result;
    }
    return this.#zero(offset, bytes, 0);
  }

  #zero(offset: number, bytes: number, flags: number): Promise<number> {
    return this.#session.backend.request(OP_WRITE_ZEROES, offset, bytes, 0, flags);
  }

  /** Those that wait for it grow the disk together. */
  #growTo(bytes: number): Promise<number> {
    if (bytes > LENGTH_MAX) return Promise.resolve(-EFBIG);
    const { backend } = this.#session;
    this.#growsTo = Math.max(this.#growsTo, bytes);
    return this.#afterOthers(async () => {
      const together = Math.max(bytes, this.#growsTo);
      this.#growsTo = 0;
      if (backend.node.bytes >= bytes) return 0;
      const result = await this.#resize(together, true);
      return result < 0 && together > bytes ? this.#resize(bytes, true) : result;
    });
  }

  #resizeTo(bytes: number): Promise<number> {
    if (bytes > LENGTH_MAX) return Promise.resolve(-EFBIG);
    const { backend } = this.#session;
    return this.#afterOthers(() => {
      return backend.node.bytes === bytes ? Promise.resolve(0) : this.#resize(bytes, false);
    });
  }

  async #afterOthers(resize: () => Promise<number>): Promise<number> {
    this.#resizes++;
    // Who waits for the end of all requests must not wait for this one.
    this.#session.changed();
    const resized = this.#lastResize.then(resize);
    this.#lastResize = resized;
    const result = await resized;
    this.#resizes--;
    return result;
  }

  /** Where data or a hole begins, from `offset` on; -errno. */
  async #find(wantsData: boolean, offset: number): Promise<number> {
    const { backend, reactor } = this.#session;
    const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    const { node } = backend;
    let at = offset;
    const look = () => (at < node.bytes ? node.blockStatus(at, node.bytes - at, status) : 0);
    for (let looks = 1; at < node.bytes; looks++) {
      status.bytes = 0;
      const error = await backend.ask(look);
      if (error < 0) return error;
      if (status.bytes > 0 && ((status.flags & STATUS_DATA) !== 0) === wantsData) return at;
      at += status.bytes;
      if (looks % EXTENTS_PER_TURN === 0) await reactor.sleep(0);
    }
    // There is a hole at the end, and nothing beyond it.
    return wantsData || offset > node.bytes ? -ENXIO : Math.min(at, node.bytes);
  }
}
