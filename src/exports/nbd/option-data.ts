/**
 * Reads the data of one option field by field. Each reader is a generator that asks for the bytes
 * it needs, so the code reads in wire order although the bytes come in any pieces.
 * Thread: iothread.
 *
 * Spec: NBD proto.md "Option types"
 */
import {
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
  NBD_REP_ERR_INVALID,
} from "../../abi/nbd.ts";
import type { OptionReplies } from "./option-replies.ts";

/**
 * Yields how many bytes it wants next and is resumed with exactly these, which stay valid until
 * the next yield. ROOM waits for room in the output instead.
 */
export type Reader<T> = Generator<number, T, Uint8Array>;
export const ROOM = 0;
/** What a reader asks for at once at most. */
export const READ_BYTES_MAX = NBD_MAX_STRING_SIZE;

/** The data was not what it should be; the reply was sent and the data is used up. */
const REFUSED = null;

const OPTION_NAMES: ReadonlyMap<number, string> = new Map([
  [NBD_OPT_EXPORT_NAME, "export name"],
  [NBD_OPT_ABORT, "abort"],
  [NBD_OPT_LIST, "list"],
  [NBD_OPT_STARTTLS, "starttls"],
  [NBD_OPT_INFO, "info"],
  [NBD_OPT_GO, "go"],
  [NBD_OPT_STRUCTURED_REPLY, "structured reply"],
  [NBD_OPT_LIST_META_CONTEXT, "list meta context"],
  [NBD_OPT_SET_META_CONTEXT, "set meta context"],
  [NBD_OPT_EXTENDED_HEADERS, "extended headers"],
]);

/** How messages name an option. */
export function optionName(option: number): string {
  return OPTION_NAMES.get(option) ?? "<unknown>";
}

export class OptionData {
  readonly option: number;
  /** Bytes not read yet. */
  left: number;
  #replies: OptionReplies;

  constructor(option: number, bytes: number, replies: OptionReplies) {
    this.option = option;
    this.left = bytes;
    this.#replies = replies;
  }

  /** Throws the rest of the data away, then answers with an error. */
  *refuse(type: number, message: string): Reader<typeof REFUSED> {
    yield* this.#discard(this.left);
    this.#replies.text(type, message);
    return REFUSED;
  }

  *refuseLength(): Reader<typeof REFUSED> {
    const message = `option '${optionName(this.option)}' has unexpected length`;
    return yield* this.refuse(NBD_REP_ERR_INVALID, message);
  }

  /** `bytes` is at most READ_BYTES_MAX. */
  *bytes(bytes: number): Reader<Uint8Array | typeof REFUSED> {
    if (bytes > this.left) return yield* this.#refuseInconsistent();
    this.left -= bytes;
    return bytes === 0 ? new Uint8Array(0) : yield bytes;
  }

  *u16(): Reader<number | typeof REFUSED> {
    const bytes = yield* this.bytes(2);
    return bytes && (bytes[0]! << 8) | bytes[1]!;
  }

  *u32(): Reader<number | typeof REFUSED> {
    const bytes = yield* this.bytes(4);
    return bytes && readU32(bytes, 0);
  }

  /** `bytes` (at most READ_BYTES_MAX) without NUL. The result is the caller's. */
  *string(bytes: number): Reader<Uint8Array | typeof REFUSED> {
    const string = yield* this.bytes(bytes);
    if (string === REFUSED) return REFUSED;
    if (!string.includes(0)) return string.slice();
    const message = `Unexpected embedded NUL in option ${optionName(this.option)}`;
    return yield* this.refuse(NBD_REP_ERR_INVALID, message);
  }

  /** A u32 length, then an export's name. The result is the caller's. */
  *name(): Reader<Uint8Array | typeof REFUSED> {
    const bytes = yield* this.u32();
    if (bytes === REFUSED) return REFUSED;
    if (bytes > NBD_MAX_STRING_SIZE) {
      return yield* this.refuse(NBD_REP_ERR_INVALID, `Invalid name length: ${bytes}`);
    }
    return yield* this.string(bytes);
  }

  *skip(bytes: number): Reader<true | typeof REFUSED> {
    if (bytes > this.left) return yield* this.#refuseInconsistent();
    yield* this.#discard(bytes);
    return true;
  }

  *#discard(bytes: number): Reader<void> {
    this.left -= bytes;
    for (let rest = bytes; rest > 0; rest -= READ_BYTES_MAX) yield Math.min(rest, READ_BYTES_MAX);
  }

  *#refuseInconsistent(): Reader<typeof REFUSED> {
    const message = `Inconsistent lengths in option ${optionName(this.option)}`;
    return yield* this.refuse(NBD_REP_ERR_INVALID, message);
  }
}

export function readU32(bytes: Uint8Array, at: number): number {
  return (
    ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0
  );
}
