/**
 * Encrypted images: where the LUKS header lies in them, and guest data through their key. Clusters
 * are encrypted by their place in the data file; metadata and compressed clusters are not.
 * Thread: iothread; everything async may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Full disk encryption header pointer", "Data encryption"
 */

import { LUKS_HEADER_BYTES } from "../../../abi/luks.ts";
import * as abi from "../../../abi/qcow2.ts";
import {
  CRYPTO_EXTENSION_BYTES,
  CRYPTO_LENGTH,
  CRYPTO_OFFSET,
} from "../../../abi/qcow2-encryption.ts";
import { type LuksHeader, parseLuksHeader } from "../../../crypto/luks-header.ts";
import type { ReadVolume } from "../../../crypto/luks-lock.ts";
import { XtsCipher } from "../../../crypto/xts.ts";
import { EIO, strerror } from "../../../runtime/errno.ts";
import { type ErrorKind, OutportError } from "../../../util/error.ts";
import type { OpenContext } from "../../driver.ts";
import { EncryptedData } from "../../encrypted-data.ts";
import type { BlockNode } from "../../node.ts";
import { getU64, type HeaderExtras, type Qcow2Header, viewOf } from "./header.ts";
import type { ImageFile } from "./image-file.ts";

/** Key slots take about 2 MiB. QSD differs: it has no limit. */
const HEADER_BYTES_MAX = 64 * 1024 * 1024;

/** Where guest data lies, as those who read and write it see it. */
export type GuestData = Pick<ImageFile, "node" | "read" | "write" | "lengthen" | "writeZeroes">;

/** Of the image file. */
export interface HeaderPlace {
  readonly offset: number;
  readonly bytes: number;
}

/** An open image's. */
export interface Encryption {
  readonly header: LuksHeader;
  readonly data: GuestData;
  /** The master key, for the same image elsewhere. */
  readonly key: Uint8Array;
}

/** Where the LUKS header and its key material lie; null: nowhere. Throws OutportError. */
export function encryptionPlace(
  { cryptMethod, clusterBits }: Qcow2Header,
  { extensions }: HeaderExtras,
): HeaderPlace | null {
  if (cryptMethod !== abi.QCOW_CRYPT_LUKS) return null;
  const ofType = extensions.filter(({ type }) => type === abi.QCOW2_EXT_MAGIC_CRYPTO_HEADER);
  const data = ofType.at(-1)?.data;
  if (data === undefined) fail(`Missing CRYPTO header for crypt method ${cryptMethod}`);
  if (data.length !== CRYPTO_EXTENSION_BYTES) {
    const expected = `but expected size ${CRYPTO_EXTENSION_BYTES}`;
    fail(`CRYPTO header extension size ${data.length}, ${expected}`);
  }
  const view = viewOf(data);
  const offset = getU64(view, CRYPTO_OFFSET);
  const bytes = getU64(view, CRYPTO_LENGTH);
  const clusterBytes = 2 ** clusterBits;
  if (offset % clusterBytes !== 0) {
    const unit = `cluster size '${clusterBytes}'`;
    fail(`Encryption header offset '${offset}' is not a multiple of ${unit}`);
  }
  if (bytes > HEADER_BYTES_MAX) fail(`Encryption header of ${bytes} bytes is too large`);
  if (!Number.isSafeInteger(offset + bytes)) throw unreadable(-EIO);
  return { offset, bytes };
}

/** Throws OutportError: it says at once what only a key would show to be missing. */
export function checkKeySecret(
  { cryptMethod }: Qcow2Header,
  options: OpenContext["options"],
): void {
  if (cryptMethod === abi.QCOW_CRYPT_NONE || keySecretOf(options) !== undefined) return;
  fail("Parameter 'encrypt.key-secret' is required for cipher");
}

export function keySecretOf(options: OpenContext["options"]): string | undefined {
  return (options.encrypt as { "key-secret"?: string } | undefined)?.["key-secret"];
}

/**
 * The key comes from the same image as it was open `before`, and is the same array; or with the
 * context. Null: the image is not encrypted. Throws OutportError.
 */
export async function openEncryption(
  context: OpenContext,
  place: HeaderPlace | null,
  file: ImageFile,
  dataFile: ImageFile | null,
  before: Encryption | null,
): Promise<Encryption | null> {
  if (place === null) return null;
  const header = parseLuksHeader(await readerOf(file, place)(0, LUKS_HEADER_BYTES));
  if (before !== null && !isSameKey(header, before.header)) {
    fail("The image has got another encryption key");
  }
  const key = before?.key ?? takeKey(context);
  const plain = dataFile ?? file;
  return { header, key, data: new EncryptedGuestData(context, plain, new XtsCipher(key)) };
}

class EncryptedGuestData implements GuestData {
  readonly node: BlockNode;
  readonly read: GuestData["read"];
  readonly write: GuestData["write"];
  readonly lengthen: GuestData["lengthen"];
  /** Only a raw data file asks for that: what nobody can read without the image, either. */
  readonly writeZeroes: GuestData["writeZeroes"];

  constructor({ reactor }: OpenContext, file: ImageFile, cipher: XtsCipher) {
    const data = new EncryptedData(reactor, cipher, file);
    this.node = file.node;
    this.read = (...range) => data.read(...range);
    this.write = (...range) => data.write(...range);
    this.lengthen = (...range) => file.lengthen(...range);
    this.writeZeroes = (...range) => file.writeZeroes(...range);
  }
}

/** A copy: what the context has is wiped. */
function takeKey({ key, handedOver }: OpenContext): Uint8Array {
  const given = key ?? (handedOver as { key?: Uint8Array } | undefined)?.key;
  if (given === undefined) fail("Parameter 'encrypt.key-secret' is required for cipher");
  const copy = given.slice();
  given.fill(0);
  return copy;
}

function isSameKey(one: LuksHeader, other: LuksHeader): boolean {
  const { digest, digestSalt, digestIterations, hash } = other;
  const isSame = (bytes: Uint8Array, others: Uint8Array): boolean =>
    bytes.every((byte, i) => byte === others[i]);
  if (one.hash !== hash || one.digestIterations !== digestIterations) return false;
  return isSame(one.digest, digest) && isSame(one.digestSalt, digestSalt);
}

/** Of what the image says to be its LUKS header. */
export function readerOf(file: ImageFile, { offset, bytes }: HeaderPlace): ReadVolume {
  return async (at, count) => {
    if (at + count > bytes) fail("Request for data outside of extension header");
    const result = await file.readBytes(offset + at, count);
    if (typeof result === "number") throw unreadable(result);
    return result;
  };
}

function unreadable(result: number): OutportError {
  return new OutportError("io", `Could not read encryption header: ${strerror(result)}`);
}

function fail(message: string, kind: ErrorKind = "invalid"): never {
  throw new OutportError(kind, message);
}
