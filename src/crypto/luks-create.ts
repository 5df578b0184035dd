/**
 * New LUKS volumes: checks what is asked for, in QSD's words, and makes the header with one key
 * slot. Thread: main; the check also on the iothread.
 * Spec: qapi/crypto.json QCryptoBlockCreateOptionsLUKS; QEMU crypto/block-luks.c
 * qcrypto_block_luks_create()
 */
import { randomBytes, randomUUID } from "node:crypto";
import * as abi from "../abi/luks.ts";
import { ERANGE, strerror } from "../runtime/errno.ts";
import { type ErrorKind, OutportError } from "../util/error.ts";
import { afSplit, DIGEST_BYTES } from "./af-split.ts";
import { ITERATIONS_MAX } from "./luks-header.ts";
import { payloadOffset, slotOffset } from "./luks-layout.ts";
import { derive, iterationsPerSecond } from "./pbkdf2.ts";
import { XtsCipher } from "./xts.ts";

/** Wire names. */
export interface LuksCreateOptions {
  readonly "key-secret"?: string;
  readonly "cipher-alg"?: string;
  readonly "cipher-mode"?: string;
  readonly "ivgen-alg"?: string;
  readonly "ivgen-hash-alg"?: string;
  readonly "hash-alg"?: string;
  readonly "iter-time"?: number;
}

const KEY_BYTES: ReadonlyMap<string, number> = new Map([
  ["aes-128", 32],
  ["aes-256", 64],
]);
const ITER_TIME_MS = 2000;
const ITERATIONS_MIN = 1000;

/** Throws OutportError. Returns the length of the master key. */
export function luksKeyBytes(options: LuksCreateOptions): number {
  const { "cipher-alg": cipher = "aes-256", "cipher-mode": mode = "xts" } = options;
  const { "ivgen-alg": generator = "plain64", "hash-alg": hash = "sha256" } = options;
  const keyBytes = KEY_BYTES.get(cipher);
  // QSD differs: it knows other ciphers, modes, hashes and generators, too.
  if (keyBytes === undefined) fail(`Algorithm '${cipher}' not supported`);
  if (mode !== "xts") fail(`Unsupported cipher mode ${mode}`);
  if (generator !== "plain64") fail(`IV generator '${generator}' not supported`);
  if (!DIGEST_BYTES.has(hash)) fail(`PBKDF does not support hash algorithm ${hash}`);
  return keyBytes;
}

/** A new volume with all that its opening needs. */
export interface NewLuks {
  /** The header and the key material of the first slot, from the volume's start on. */
  readonly area: Uint8Array<ArrayBuffer>;
  /** The caller's to wipe. */
  readonly masterKey: Uint8Array;
}

/**
 * Throws OutportError. Takes about as long as `iter-time` says, and some more. `isDetached`: the
 * payload is to lie elsewhere, from its start on.
 */
export async function makeLuks(
  options: LuksCreateOptions,
  passphrase: Uint8Array,
  isDetached = false,
): Promise<NewLuks> {
  const keyBytes = luksKeyBytes(options);
  const { "hash-alg": hash = "sha256", "iter-time": iterTimeMs = ITER_TIME_MS } = options;
  const masterKey = new Uint8Array(randomBytes(keyBytes));
  const [digestSalt, slotSalt] = [randomBytes(abi.LUKS_SALTSIZE), randomBytes(abi.LUKS_SALTSIZE)];
  const digestParts = { password: masterKey, salt: digestSalt, bytes: abi.LUKS_DIGESTSIZE, hash };
  // With all slots in use, trying them takes no longer than one.
  const digestIterations = await iterationsFor(digestParts, iterTimeMs / abi.LUKS_NUMKEYS);
  const digest = await derive({ ...digestParts, iterations: digestIterations });
  const slotParts = { password: passphrase, salt: slotSalt, bytes: keyBytes, hash };
  const slotIterations = await iterationsFor(slotParts, iterTimeMs);
  const slotKey = await derive({ ...slotParts, iterations: slotIterations });
  const split = afSplit(masterKey, abi.LUKS_STRIPES, hash);
  new XtsCipher(slotKey).encrypt(split, split, 0);
  slotKey.fill(0);
  const area = new Uint8Array(slotOffset(keyBytes, 0) + split.length);
  area.set(split, slotOffset(keyBytes, 0));
  fillHeader(area, options, { keyBytes, hash, digest, digestSalt, digestIterations });
  const first = abi.LUKS_HEADER_KEY_SLOTS;
  const view = new DataView(area.buffer);
  if (isDetached) view.setUint32(abi.LUKS_HEADER_PAYLOAD_OFFSET, 0);
  view.setUint32(first + abi.LUKS_SLOT_ACTIVE, abi.LUKS_KEY_ENABLED);
  view.setUint32(first + abi.LUKS_SLOT_ITERATIONS, slotIterations);
  area.set(slotSalt, first + abi.LUKS_SLOT_SALT);
  return { area, masterKey };
}

interface HeaderFields {
  readonly keyBytes: number;
  readonly hash: string;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
}

/** All of it, with no slot in use. */
function fillHeader(area: Uint8Array, options: LuksCreateOptions, fields: HeaderFields): void {
  const { keyBytes, hash, digest, digestSalt, digestIterations } = fields;
  const view = new DataView(area.buffer, area.byteOffset, area.byteLength);
  const setText = (at: number, text: string): void => area.set(new TextEncoder().encode(text), at);
  const { "ivgen-hash-alg": ivHash } = options;
  area.set(abi.LUKS_MAGIC);
  view.setUint16(abi.LUKS_HEADER_VERSION, abi.LUKS_VERSION);
  setText(abi.LUKS_HEADER_CIPHER_NAME, "aes");
  setText(abi.LUKS_HEADER_CIPHER_MODE, `xts-plain64${ivHash === undefined ? "" : `:${ivHash}`}`);
  setText(abi.LUKS_HEADER_HASH_SPEC, hash);
  const payload = payloadOffset(keyBytes) / abi.LUKS_SECTOR_BYTES;
  view.setUint32(abi.LUKS_HEADER_PAYLOAD_OFFSET, payload);
  view.setUint32(abi.LUKS_HEADER_KEY_BYTES, keyBytes);
  area.set(digest, abi.LUKS_HEADER_MK_DIGEST);
  area.set(digestSalt, abi.LUKS_HEADER_MK_DIGEST_SALT);
  view.setUint32(abi.LUKS_HEADER_MK_DIGEST_ITER, digestIterations);
  setText(abi.LUKS_HEADER_UUID, randomUUID());
  for (let i = 0; i < abi.LUKS_NUMKEYS; i++) {
    const at = abi.LUKS_HEADER_KEY_SLOTS + i * abi.LUKS_SLOT_BYTES;
    const offset = slotOffset(keyBytes, i) / abi.LUKS_SECTOR_BYTES;
    view.setUint32(at + abi.LUKS_SLOT_ACTIVE, abi.LUKS_KEY_DISABLED);
    view.setUint32(at + abi.LUKS_SLOT_KEY_MATERIAL_OFFSET, offset);
    view.setUint32(at + abi.LUKS_SLOT_STRIPES, abi.LUKS_STRIPES);
  }
}

/** So many that they take that time. Throws OutportError. */
async function iterationsFor(
  parts: Parameters<typeof iterationsPerSecond>[0],
  ms: number,
): Promise<number> {
  const perSecond = await iterationsPerSecond(parts);
  const wanted = Math.floor((perSecond * ms) / 1000);
  const outOfRange = strerror(ERANGE);
  if (ms < 0 || wanted * 1000 >= 2 ** 64) {
    fail(`PBKDF iterations ${perSecond} too large to scale: ${outOfRange}`, "limit");
  }
  if (wanted > ITERATIONS_MAX) {
    // QSD differs: its limit is 4294967295.
    fail(`PBKDF iterations ${wanted} larger than ${ITERATIONS_MAX}: ${outOfRange}`, "limit");
  }
  return Math.max(wanted, ITERATIONS_MIN);
}

function fail(message: string, kind: ErrorKind = "unsupported"): never {
  throw new OutportError(kind, message);
}
