/**
 * The exports that the NBD server of this iothread offers, and what its handshakes tell about
 * them. Thread: iothread.
 *
 * Spec: qapi/block-export.json BlockExportOptionsNbd
 */
import {
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_MAX_STRING_SIZE,
} from "../../abi/nbd.ts";
import type { BitmapPlace } from "../../iothread/messages.ts";
import { assert } from "../../util/error.ts";
import type { NbdMetaContext } from "./meta-context.ts";

/** One export as clients see it. It doesn't change while it is in the table. */
export interface NbdExportInfo {
  /** Of the block export. */
  readonly id: string;
  /** At most 4096 bytes in UTF-8, as is the description. */
  readonly name: string;
  readonly description: string | undefined;
  readonly bytes: number;
  readonly readOnly: boolean;
  /** Several connections see one cache: true unless the server takes one connection only. */
  readonly multiConn: boolean;
  /** Powers of two; `min` is the node's request alignment, `max` at most 32 MiB. */
  readonly blockSize: { readonly min: number; readonly preferred: number; readonly max: number };
  /** What it offers, in the order in which they are listed. */
  readonly contexts: readonly NbdMetaContext[];
}

/** What the thread that serves it knows beyond that. */
export interface ServedNbdExport extends NbdExportInfo {
  /** What its contexts from FIRST_BITMAP_ID on show. */
  readonly bitmaps: readonly BitmapPlace[];
}

/** What a handshake may look at. */
export interface ExportTable {
  /** Oldest first. */
  list(): readonly NbdExportInfo[];
  find(name: string): NbdExportInfo | undefined;
}

/** Kinds of replies, each with all of the one before. */
export type NbdMode = "simple" | "structured" | "extended";

/** Transmission flags. `payload`: block status requests may carry a list of contexts. */
export function transmissionFlags(info: NbdExportInfo, mode: NbdMode, payload: boolean): number {
  let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;
  if (info.multiConn) flags |= NBD_FLAG_CAN_MULTI_CONN;
  flags |= info.readOnly
    ? NBD_FLAG_READ_ONLY
    : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
  if (mode !== "simple") flags |= NBD_FLAG_SEND_DF;
  if (mode === "extended" && payload) flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  return flags;
}

/** The table that the server keeps. Names are unique: main has checked. */
export class NbdExports implements ExportTable {
  #byName = new Map<string, NbdExportInfo>();

  add(info: NbdExportInfo): void {
    assert(!this.#byName.has(info.name), "export names are unique");
    assert(info.name.length <= NBD_MAX_STRING_SIZE, "an export name fits a reply");
    this.#byName.set(info.name, info);
  }

  remove(name: string): void {
    this.#byName.delete(name);
  }

  list(): readonly NbdExportInfo[] {
    return [...this.#byName.values()];
  }

  find(name: string): NbdExportInfo | undefined {
    return this.#byName.get(name);
  }
}
