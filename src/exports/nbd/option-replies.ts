/**
 * What the handshake wants to send: a growing buffer, with the replies to options put together in
 * it. Thread: iothread.
 *
 * Spec: NBD proto.md "Fixed newstyle negotiation", "Option reply types"
 */
import {
  NBD_EXPORT_NAME_REPLY_BYTES,
  NBD_EXPORT_NAME_ZEROES_BYTES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_GREETING_BYTES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAGIC_HI,
  NBD_MAGIC_LO,
  NBD_OPTION_REPLY_HEADER_BYTES,
  NBD_OPTS_MAGIC_HI,
  NBD_OPTS_MAGIC_LO,
  NBD_REP_INFO,
  NBD_REP_MAGIC_HI,
  NBD_REP_MAGIC_LO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
} from "../../abi/nbd.ts";
import { assert } from "../../util/error.ts";
import { trace } from "../../util/trace.ts";

/** Most handshakes fit in it. */
const BUFFER_BYTES_MIN = 512;
const UTF8 = new TextEncoder();

export class OptionReplies {
  /** The option that replies are about. u32. */
  option = 0;
  #bytes = new Uint8Array(BUFFER_BYTES_MIN);
  #view = new DataView(this.#bytes.buffer);
  /** [#start, #end) is not sent yet. */
  #start = 0;
  #end = 0;

  /** Bytes to send. */
  get pendingBytes(): number {
    return this.#end - this.#start;
  }

  /** Copies what fits to the beginning of `target`; returns how many bytes. */
  copy(target: Uint8Array): number {
    const bytes = Math.min(this.pendingBytes, target.length);
    target.set(this.#bytes.subarray(this.#start, this.#start + bytes));
    return bytes;
  }

  /** The first `bytes` are sent. */
  advance(bytes: number): void {
    assert(bytes <= this.pendingBytes, "only what there is was sent");
    this.#start += bytes;
    if (this.#start === this.#end) this.#start = this.#end = 0;
  }

  greeting(): void {
    const at = this.#reserve(NBD_GREETING_BYTES);
    this.#view.setUint32(at, NBD_MAGIC_HI, false);
    this.#view.setUint32(at + 4, NBD_MAGIC_LO, false);
    this.#view.setUint32(at + 8, NBD_OPTS_MAGIC_HI, false);
    this.#view.setUint32(at + 12, NBD_OPTS_MAGIC_LO, false);
    this.#view.setUint16(at + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, false);
  }

  /** Any reply; `data` may be empty. */
  reply(type: number, data: Uint8Array): void {
    const at = this.#header(type, data.length);
    this.#bytes.set(data, at);
  }

  /** A reply with a message, or without data. */
  text(type: number, message = ""): void {
    if (trace.nbd_negotiate_send_rep_err.enabled && message !== "") {
      trace.nbd_negotiate_send_rep_err.write(`sending error message "${message}"`);
    }
    this.reply(type, UTF8.encode(message));
  }

  server(name: string, description: string): void {
    const nameBytes = UTF8.encode(name);
    const descriptionBytes = UTF8.encode(description);
    const at = this.#header(NBD_REP_SERVER, 4 + nameBytes.length + descriptionBytes.length);
    this.#view.setUint32(at, nameBytes.length, false);
    this.#bytes.set(nameBytes, at + 4);
    this.#bytes.set(descriptionBytes, at + 4 + nameBytes.length);
  }

  /** NBD_INFO_NAME, NBD_INFO_DESCRIPTION. */
  infoString(info: number, data: Uint8Array): void {
    const at = this.#header(NBD_REP_INFO, 2 + data.length);
    this.#view.setUint16(at, info, false);
    this.#bytes.set(data, at + 2);
  }

  infoBlockSize(min: number, preferred: number, max: number): void {
    const at = this.#header(NBD_REP_INFO, 14);
    this.#view.setUint16(at, NBD_INFO_BLOCK_SIZE, false);
    this.#view.setUint32(at + 2, min, false);
    this.#view.setUint32(at + 6, preferred, false);
    this.#view.setUint32(at + 10, max, false);
  }

  infoExport(bytes: number, flags: number): void {
    const at = this.#header(NBD_REP_INFO, 2 + NBD_EXPORT_NAME_REPLY_BYTES);
    this.#view.setUint16(at, NBD_INFO_EXPORT, false);
    this.#sizeAndFlags(at + 2, bytes, flags);
  }

  metaContext(id: number, name: string): void {
    const nameBytes = UTF8.encode(name);
    const at = this.#header(NBD_REP_META_CONTEXT, 4 + nameBytes.length);
    this.#view.setUint32(at, id, false);
    this.#bytes.set(nameBytes, at + 4);
  }

  /** The answer to NBD_OPT_EXPORT_NAME, which has no header. */
  exportName(bytes: number, flags: number, zeroes: boolean): void {
    const zeroBytes = zeroes ? NBD_EXPORT_NAME_ZEROES_BYTES : 0;
    this.#sizeAndFlags(this.#reserve(NBD_EXPORT_NAME_REPLY_BYTES + zeroBytes), bytes, flags);
  }

  #sizeAndFlags(at: number, bytes: number, flags: number): void {
    this.#view.setUint32(at, bytes / 0x1_0000_0000, false);
    this.#view.setUint32(at + 4, bytes, false);
    this.#view.setUint16(at + 8, flags, false);
  }

  /** Position of the reply's data. */
  #header(type: number, bytes: number): number {
    const at = this.#reserve(NBD_OPTION_REPLY_HEADER_BYTES + bytes);
    this.#view.setUint32(at, NBD_REP_MAGIC_HI, false);
    this.#view.setUint32(at + 4, NBD_REP_MAGIC_LO, false);
    this.#view.setUint32(at + 8, this.option, false);
    this.#view.setUint32(at + 12, type, false);
    this.#view.setUint32(at + 16, bytes, false);
    return at + NBD_OPTION_REPLY_HEADER_BYTES;
  }

  /** Appends `bytes` zeroes; returns where they begin. */
  #reserve(bytes: number): number {
    if (this.#end + bytes > this.#bytes.length) this.#grow(bytes);
    const at = this.#end;
    this.#end += bytes;
    this.#bytes.fill(0, at, this.#end);
    return at;
  }

  #grow(bytes: number): void {
    const pending = this.#bytes.subarray(this.#start, this.#end);
    let capacity = this.#bytes.length;
    while (capacity < pending.length + bytes) capacity *= 2;
    const grown = new Uint8Array(capacity);
    grown.set(pending);
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
    this.#end = pending.length;
    this.#start = 0;
  }
}
