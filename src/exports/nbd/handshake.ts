/**
 * The server's side of the handshake of one connection, without I/O: bytes in, bytes out, and a
 * session at the end. Whatever a client sends, work and memory per byte are bounded.
 * Thread: iothread.
 *
 * Spec: NBD proto.md "Fixed newstyle negotiation", "Option haggling"
 */
import {
  NBD_CLIENT_FLAGS_BYTES,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_NAME,
  NBD_MAX_BUFFER_SIZE,
  NBD_MAX_STRING_SIZE,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTION_HEADER_BYTES,
  NBD_OPTS_MAGIC_HI,
  NBD_OPTS_MAGIC_LO,
  NBD_REP_ACK,
  NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
} from "../../abi/nbd.ts";
import { assert } from "../../util/error.ts";
import { trace } from "../../util/trace.ts";
import {
  type ExportTable,
  type NbdExportInfo,
  type NbdMode,
  transmissionFlags,
} from "./export-table.ts";
import { type NbdMetaContext, selectContexts } from "./meta-context.ts";
import {
  OptionData,
  optionName,
  READ_BYTES_MAX,
  type Reader,
  ROOM,
  readU32,
} from "./option-data.ts";
import { OptionReplies } from "./option-replies.ts";

/** Unsent output from which on nothing more is read: a client that doesn't listen waits. */
export const OUTPUT_PENDING_MAX = 64 * 1024;
const NOTHING = new Uint8Array(0);
const UTF8 = new TextEncoder();
const UTF8_STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
/** Bytes of an export's name that a message repeats. */
const NAME_SHOWN_BYTES_MAX = 80;

/** What was negotiated. Structured-cloneable: it may go to another iothread. */
export interface Session {
  readonly exportId: string;
  readonly mode: NbdMode;
  /** Chosen by NBD_OPT_SET_META_CONTEXT, in the export's order. */
  readonly contexts: readonly NbdMetaContext[];
}

/** "closed": send the output that is left, then close. */
export type HandshakeState = "haggling" | "transmission" | "closed";

export class Handshake {
  state: HandshakeState = "haggling";
  /** Set in state "transmission". */
  session: Session | null = null;
  /** Why the server gave up; empty when the client ended it. */
  failure = "";
  #exports: ExportTable;
  #replies = new OptionReplies();
  #reader: Reader<void>;
  #wanted: number;
  /** What came of the bytes wanted when they come in pieces. */
  #partial: Uint8Array | null = null;
  #partialBytes = 0;
  #mode: NbdMode = "simple";
  #chosen: { info: NbdExportInfo; contexts: readonly NbdMetaContext[] } | null = null;

  constructor(exports: ExportTable) {
    this.#exports = exports;
    this.#replies.greeting();
    this.#reader = this.#haggle();
    this.#wanted = this.#reader.next().value ?? 0;
  }

  /** Output not sent yet. */
  get outputBytes(): number {
    return this.#replies.pendingBytes;
  }

  /** Copies what fits to the beginning of `target`; returns how many bytes. */
  copyOutput(target: Uint8Array): number {
    return this.#replies.copy(target);
  }

  /** The first `bytes` of the output are sent. When none is left, feed() may go on. */
  advanceOutput(bytes: number): void {
    this.#replies.advance(bytes);
  }

  /**
   * Returns how many bytes it used. Less than all: the output must be sent before it goes on, or
   * the handshake is over and the rest belongs to the transmission phase. After output was sent,
   * call it again even without bytes: a long reply may go on.
   */
  feed(bytes: Uint8Array): number {
    let at = 0;
    while (this.state === "haggling" && this.outputBytes < OUTPUT_PENDING_MAX) {
      if (this.#wanted === ROOM) {
        this.#resume(NOTHING);
        continue;
      }
      const missing = this.#wanted - this.#partialBytes;
      const piece = bytes.subarray(at, at + missing);
      at += piece.length;
      if (piece.length < missing) {
        this.#keep(piece);
        break;
      }
      this.#resume(this.#completed(piece));
    }
    return at;
  }

  /** The bytes wanted, of which `piece` was the last. */
  #completed(piece: Uint8Array): Uint8Array {
    if (this.#partial === null) return piece;
    this.#keep(piece);
    const whole = this.#partial;
    this.#partial = null;
    this.#partialBytes = 0;
    return whole;
  }

  #keep(piece: Uint8Array): void {
    if (piece.length === 0) return;
    this.#partial ??= new Uint8Array(this.#wanted);
    this.#partial.set(piece, this.#partialBytes);
    this.#partialBytes += piece.length;
  }

  #resume(bytes: Uint8Array): void {
    const next = this.#reader.next(bytes);
    if (next.done === true) {
      assert(this.state !== "haggling", "a reader ends by ending the handshake");
    } else {
      assert(next.value <= READ_BYTES_MAX, "a reader keeps to its limit");
      this.#wanted = next.value;
    }
  }

  /** Without a reply; `failure` is for the log. */
  #drop(failure: string): void {
    this.failure = failure;
    this.state = "closed";
  }

  #enterTransmission(info: NbdExportInfo): void {
    if (trace.nbd_negotiate_handle_export_name_request.enabled) {
      const text = `Client requested export '${info.name}'`;
      trace.nbd_negotiate_handle_export_name_request.write(text);
    }
    const contexts = this.#contextsFor(info);
    this.session = { exportId: info.id, mode: this.#mode, contexts };
    this.state = "transmission";
  }

  /** A choice counts for the export that it was made for. */
  #contextsFor(info: NbdExportInfo): readonly NbdMetaContext[] {
    return this.#chosen !== null && this.#chosen.info === info ? this.#chosen.contexts : [];
  }

  *#haggle(): Reader<void> {
    const flags = readU32(yield NBD_CLIENT_FLAGS_BYTES, 0);
    if (trace.nbd_negotiate_options_flags.enabled) {
      trace.nbd_negotiate_options_flags.write(`Received client flags 0x${flags.toString(16)}`);
    }
    const fixed = (flags & NBD_FLAG_C_FIXED_NEWSTYLE) !== 0;
    const zeroes = (flags & NBD_FLAG_C_NO_ZEROES) === 0;
    const unknown = (flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) >>> 0;
    if (unknown !== 0) {
      return this.#drop(`Unknown client flags 0x${unknown.toString(16)} received`);
    }
    while (this.state === "haggling") {
      const header = yield NBD_OPTION_HEADER_BYTES;
      if (readU32(header, 0) !== NBD_OPTS_MAGIC_HI || readU32(header, 4) !== NBD_OPTS_MAGIC_LO) {
        return this.#drop("Bad magic received");
      }
      const option = readU32(header, 8);
      const bytes = readU32(header, 12);
      if (trace.nbd_negotiate_options_check_option.enabled) {
        const text = `Checking option ${option} (${optionName(option)}) len ${bytes}`;
        trace.nbd_negotiate_options_check_option.write(text);
      }
      if (bytes > NBD_MAX_BUFFER_SIZE) {
        return this.#drop(`len (${bytes}) is larger than max len (${NBD_MAX_BUFFER_SIZE})`);
      }
      const data = new OptionData(option, bytes, this.#replies);
      this.#replies.option = option;
      if (option === NBD_OPT_EXPORT_NAME) return yield* this.#exportName(data, zeroes);
      if (!fixed) return this.#drop(`Unsupported option ${option} (${optionName(option)})`);
      yield* this.#option(data);
      // A short option's long reply is sent before the next one is looked at.
      yield ROOM;
    }
  }

  *#option(data: OptionData): Reader<unknown> {
    switch (data.option) {
      case NBD_OPT_ABORT:
        this.#replies.text(NBD_REP_ACK);
        this.state = "closed";
        return;
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        return yield* this.#info(data);
      case NBD_OPT_LIST_META_CONTEXT:
      case NBD_OPT_SET_META_CONTEXT:
        return yield* this.#metaContext(data);
      case NBD_OPT_LIST:
      case NBD_OPT_STARTTLS:
      case NBD_OPT_STRUCTURED_REPLY:
      case NBD_OPT_EXTENDED_HEADERS:
        if (data.left > 0) return yield* data.refuseLength();
        if (data.option === NBD_OPT_LIST) return yield* this.#list();
        return this.#feature(data.option);
      default: {
        const message = `Unsupported option ${data.option} (${optionName(data.option)})`;
        return yield* data.refuse(NBD_REP_ERR_UNSUP, message);
      }
    }
  }

  /** Options without data that turn something on. */
  #feature(option: number): void {
    const already = "already negotiated";
    if (option === NBD_OPT_STARTTLS) {
      this.#replies.text(NBD_REP_ERR_POLICY, "TLS not configured");
    } else if (option === NBD_OPT_EXTENDED_HEADERS) {
      if (this.#mode === "extended") {
        this.#replies.text(NBD_REP_ERR_INVALID, `extended headers ${already}`);
      } else {
        this.#mode = "extended";
        this.#replies.text(NBD_REP_ACK);
      }
    } else if (this.#mode === "extended") {
      this.#replies.text(NBD_REP_ERR_EXT_HEADER_REQD, `extended headers ${already}`);
    } else if (this.#mode === "structured") {
      this.#replies.text(NBD_REP_ERR_INVALID, `structured reply ${already}`);
    } else {
      this.#mode = "structured";
      this.#replies.text(NBD_REP_ACK);
    }
  }

  *#list(): Reader<void> {
    for (const info of this.#exports.list()) {
      this.#replies.server(info.name, info.description ?? "");
      yield ROOM;
    }
    this.#replies.text(NBD_REP_ACK);
  }

  /** This option has no error reply: what is wrong ends the connection. */
  *#exportName(data: OptionData, zeroes: boolean): Reader<void> {
    if (this.#mode === "extended") return this.#drop("Extended headers already negotiated");
    if (data.left > NBD_MAX_STRING_SIZE) return this.#drop("Bad length received");
    const name = (yield* data.bytes(data.left))!;
    const end = name.indexOf(0);
    const info = this.#find(end < 0 ? name : name.subarray(0, end));
    if (info === undefined) return this.#drop("export not found");
    this.#replies.exportName(info.bytes, transmissionFlags(info, this.#mode, false), zeroes);
    this.#enterTransmission(info);
  }

  /** NBD_OPT_INFO, NBD_OPT_GO. */
  *#info(data: OptionData): Reader<unknown> {
    const name = yield* data.name();
    if (name === null) return;
    const count = yield* data.u16();
    if (count === null) return;
    let nameAsked = false;
    let blockSizeAsked = false;
    for (let i = 0; i < count; i++) {
      const asked = yield* data.u16();
      if (asked === null) return;
      if (asked === NBD_INFO_NAME) nameAsked = true;
      if (asked === NBD_INFO_BLOCK_SIZE) blockSizeAsked = true;
    }
    if (data.left > 0) return yield* data.refuseLength();
    const info = this.#find(name);
    if (info === undefined) return this.#replies.reply(NBD_REP_ERR_UNKNOWN, notPresent(name));

    if (nameAsked) this.#replies.infoString(NBD_INFO_NAME, name);
    const going = data.option === NBD_OPT_GO;
    this.#describe(info, going, blockSizeAsked);
    if (!going && !blockSizeAsked && info.blockSize.min > 1) {
      const message = "request NBD_INFO_BLOCK_SIZE to use this export";
      return this.#replies.text(NBD_REP_ERR_BLOCK_SIZE_REQD, message);
    }
    this.#replies.text(NBD_REP_ACK);
    if (going) this.#enterTransmission(info);
  }

  /** The information that every client gets, asked for or not. */
  #describe(info: NbdExportInfo, going: boolean, blockSizeAsked: boolean): void {
    if (info.description !== undefined) {
      this.#replies.infoString(NBD_INFO_DESCRIPTION, UTF8.encode(info.description));
    }
    // Whoever goes without having asked won't keep to a minimum, and needn't.
    const { min, preferred, max } = info.blockSize;
    this.#replies.infoBlockSize(going && !blockSizeAsked ? 1 : min, preferred, max);
    const payload = !going || this.#contextsFor(info).length > 0;
    this.#replies.infoExport(info.bytes, transmissionFlags(info, this.#mode, payload));
  }

  *#metaContext(data: OptionData): Reader<unknown> {
    const listing = data.option === NBD_OPT_LIST_META_CONTEXT;
    if (trace.nbd_negotiate_meta_context.enabled) {
      trace.nbd_negotiate_meta_context.write(`Client requested ${optionName(data.option)}`);
    }
    if (!listing) {
      if (this.#mode === "simple") {
        const message =
          `request option '${optionName(data.option)}' ` +
          "when structured reply is not negotiated";
        return yield* data.refuse(NBD_REP_ERR_INVALID, message);
      }
      this.#chosen = null;
    }
    const name = yield* data.name();
    if (name === null) return;
    const info = this.#find(name);
    if (info === undefined) {
      yield* data.skip(data.left);
      return this.#replies.reply(NBD_REP_ERR_UNKNOWN, notPresent(name));
    }
    // As in QSD, bytes after the last query are taken for the next option.
    const selected = yield* this.#queries(data, info, listing);
    if (selected === null) return;
    for (const { id, name } of selected) {
      this.#replies.metaContext(listing ? 0 : id, name);
      yield ROOM;
    }
    this.#replies.text(NBD_REP_ACK);
    if (!listing) this.#chosen = { info, contexts: selected };
  }

  /** Reads the queries; what they select, in the export's order. */
  *#queries(
    data: OptionData,
    info: NbdExportInfo,
    listing: boolean,
  ): Reader<readonly NbdMetaContext[] | null> {
    const count = yield* data.u32();
    if (count === null) return null;
    if (listing && count === 0) return info.contexts;
    const selected = new Set<number>();
    for (let i = 0; i < count; i++) {
      const bytes = yield* data.u32();
      if (bytes === null) return null;
      if (bytes > NBD_MAX_STRING_SIZE) {
        if ((yield* data.skip(bytes)) === null) return null;
        continue;
      }
      const query = yield* data.string(bytes);
      if (query === null) return null;
      selectContexts(info.contexts, decode(query) ?? "", listing, selected);
    }
    return info.contexts.filter((_, index) => selected.has(index));
  }

  #find(name: Uint8Array): NbdExportInfo | undefined {
    const text = decode(name);
    return text === undefined ? undefined : this.#exports.find(text);
  }
}

/** Undefined when it is not UTF-8. */
function decode(bytes: Uint8Array): string | undefined {
  try {
    return UTF8_STRICT.decode(bytes);
  } catch {
    return undefined;
  }
}

/** The message with the client's own bytes, whatever their encoding. */
function notPresent(name: Uint8Array): Uint8Array {
  const cut = name.length >= NAME_SHOWN_BYTES_MAX;
  const shown = name.subarray(0, NAME_SHOWN_BYTES_MAX);
  const before = UTF8.encode("export '");
  const after = UTF8.encode(cut ? "...' not present" : "' not present");
  return Uint8Array.of(...before, ...shown, ...after);
}
