/**
 * The header of a LUKS volume: parsed with every bound checked, in QSD's words where it is wrong,
 * and built. Pure. Thread: main, iothread.
 * Spec: LUKS1 On-Disk Format Specification 1.2.3 "2.3 LUKS partition header"; QEMU
 * crypto/block-luks.c
 */
import * as abi from "../abi/luks.ts";
import { type ErrorKind, OutportError } from "../util/error.ts";
import { DIGEST_BYTES } from "./af-split.ts";

/** More would keep a processor busy for minutes. QSD differs: it has no limit. */
export const ITERATIONS_MAX = 100_000_000;

export interface LuksSlot {
  readonly isActive: boolean;
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Of the key material, from the start of the header. */
  readonly offset: number;
}

export interface LuksHeader {
  /** "sha1", "sha256" or "sha512". */
  readonly hash: string;
  readonly isDetached: boolean;
  /** Behind the header and the key material, or in another file. */
  readonly payloadOffset: number;
  /** Of both AES keys together: 32 or 64. */
  readonly keyBytes: number;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  readonly slots: readonly LuksSlot[];
}

/** Bytes of a slot's key material: whole sectors. */
export function materialBytes(keyBytes: number): number {
  return keyBytes * abi.LUKS_STRIPES;
}

/**
 * Throws OutportError. `bytes`: LUKS_HEADER_BYTES; what is returned looks into them. `isDetached`:
 * the payload lies elsewhere.
 */
export function parseLuksHeader(bytes: Uint8Array, isDetached = false): LuksHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (abi.LUKS_MAGIC.some((byte, i) => bytes[i] !== byte)) fail("Volume is not in LUKS format");
  const version = view.getUint16(abi.LUKS_HEADER_VERSION);
  if (version !== abi.LUKS_VERSION) {
    fail(`LUKS version ${version} is not supported`, "unsupported");
  }
  const name = nameAt(bytes, abi.LUKS_HEADER_CIPHER_NAME, "cipher name");
  const mode = nameAt(bytes, abi.LUKS_HEADER_CIPHER_MODE, "cipher mode");
  const hash = nameAt(bytes, abi.LUKS_HEADER_HASH_SPEC, "hash spec");
  const keyBytes = view.getUint32(abi.LUKS_HEADER_KEY_BYTES);
  checkPlaces(view, keyBytes, isDetached);
  checkCipher(name, mode, hash, keyBytes);
  checkIterations(view);
  const { LUKS_HEADER_MK_DIGEST: digest, LUKS_HEADER_MK_DIGEST_SALT: salt } = abi;
  return {
    hash,
    isDetached,
    payloadOffset: view.getUint32(abi.LUKS_HEADER_PAYLOAD_OFFSET) * abi.LUKS_SECTOR_BYTES,
    keyBytes,
    digest: bytes.subarray(digest, digest + abi.LUKS_DIGESTSIZE),
    digestSalt: bytes.subarray(salt, salt + abi.LUKS_SALTSIZE),
    digestIterations: view.getUint32(abi.LUKS_HEADER_MK_DIGEST_ITER),
    uuid: textOf(bytes.subarray(abi.LUKS_HEADER_UUID, abi.LUKS_HEADER_KEY_SLOTS)),
    slots: slotOffsets().map((at) => slotAt(bytes, view, at)),
  };
}

function slotOffsets(): number[] {
  const first = abi.LUKS_HEADER_KEY_SLOTS;
  return Array.from({ length: abi.LUKS_NUMKEYS }, (_, i) => first + i * abi.LUKS_SLOT_BYTES);
}

function slotAt(bytes: Uint8Array, view: DataView, at: number): LuksSlot {
  const salt = at + abi.LUKS_SLOT_SALT;
  return {
    isActive: view.getUint32(at + abi.LUKS_SLOT_ACTIVE) === abi.LUKS_KEY_ENABLED,
    iterations: view.getUint32(at + abi.LUKS_SLOT_ITERATIONS),
    salt: bytes.subarray(salt, salt + abi.LUKS_SALTSIZE),
    offset: view.getUint32(at + abi.LUKS_SLOT_KEY_MATERIAL_OFFSET) * abi.LUKS_SECTOR_BYTES,
  };
}

function nameAt(bytes: Uint8Array, at: number, what: string): string {
  const field = bytes.subarray(at, at + abi.LUKS_NAME_BYTES);
  if (field.at(-1) !== 0) fail(`LUKS header ${what} is not NUL terminated`);
  return textOf(field);
}

/** Up to the first NUL. */
function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** What the header, the key material and the payload say about where they are. */
function checkPlaces(view: DataView, keyBytes: number, isDetached: boolean): void {
  const headerSectors = abi.LUKS_ALIGN_KEYSLOTS / abi.LUKS_SECTOR_BYTES;
  const payload = view.getUint32(abi.LUKS_HEADER_PAYLOAD_OFFSET);
  if (payload < headerSectors && !isDetached) fail("LUKS payload is overlapping with the header");
  if (view.getUint32(abi.LUKS_HEADER_MK_DIGEST_ITER) === 0) {
    fail("LUKS key iteration count is zero");
  }
  const sectors = Math.ceil(materialBytes(keyBytes) / abi.LUKS_SECTOR_BYTES);
  const starts = slotOffsets().map((at) => view.getUint32(at + abi.LUKS_SLOT_KEY_MATERIAL_OFFSET));
  for (const [i, at] of slotOffsets().entries()) {
    const state = view.getUint32(at + abi.LUKS_SLOT_ACTIVE);
    const stripes = view.getInt32(at + abi.LUKS_SLOT_STRIPES);
    const start = starts[i]!;
    if (stripes !== abi.LUKS_STRIPES) {
      fail(`Keyslot ${i} is corrupted (stripes ${stripes} != ${abi.LUKS_STRIPES})`);
    }
    if (start < headerSectors) fail(`Keyslot ${i} is overlapping with the LUKS header`);
    if (state !== abi.LUKS_KEY_ENABLED && state !== abi.LUKS_KEY_DISABLED) {
      fail(`Keyslot ${i} state (active/disable) is corrupted`);
    }
    if (state === abi.LUKS_KEY_ENABLED && view.getUint32(at + abi.LUKS_SLOT_ITERATIONS) === 0) {
      fail(`Keyslot ${i} iteration count is zero`);
    }
    if (start + sectors > payload && !isDetached) {
      fail(`Keyslot ${i} is overlapping with the encrypted payload`);
    }
    for (let j = i + 1; j < starts.length; j++) {
      if (Math.abs(starts[j]! - start) >= sectors) continue;
      fail(`Keyslots ${i} and ${j} are overlapping in the header`);
    }
  }
}

/** `mode`: "<cipher-mode>-<iv-generator>[:<iv-hash>]". */
function checkCipher(name: string, mode: string, hash: string, keyBytes: number): void {
  const found = /^(?<cipherMode>[^-]*)-(?<generator>[^:]*)(:(?<ivHash>.*))?$/s.exec(mode)?.groups;
  if (found === undefined) fail(`Unexpected cipher mode string format '${mode}'`);
  const { cipherMode, generator, ivHash } = found;
  if (ivHash !== undefined && !HASHES.includes(ivHash)) unsupported("Hash algorithm", ivHash);
  if (!CIPHER_MODES.includes(cipherMode!)) unsupported("Cipher mode", cipherMode);
  const isXts = cipherMode === "xts";
  const bytes = isXts ? Math.floor(keyBytes / 2) : keyBytes;
  if (name !== "aes" || !(bytes === 16 || bytes === 32)) {
    fail(`Algorithm '${name}' with key size ${bytes} bytes not supported`, "unsupported");
  }
  // QSD differs: it knows other modes, hashes and generators, too.
  if (!isXts) unsupported("Cipher mode", cipherMode);
  if (!DIGEST_BYTES.has(hash)) unsupported("Hash algorithm", hash);
  if (generator !== "plain64") unsupported("IV generator", generator);
  if (keyBytes % 2 !== 0) fail("XTS cipher key length should be a multiple of 2");
}

const CIPHER_MODES = ["ecb", "cbc", "xts", "ctr"];
const HASHES = ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3"];

function checkIterations(view: DataView): void {
  const digest = view.getUint32(abi.LUKS_HEADER_MK_DIGEST_ITER);
  if (digest > ITERATIONS_MAX) fail(`LUKS key iteration count ${digest} is too large`);
  for (const [i, at] of slotOffsets().entries()) {
    if (view.getUint32(at + abi.LUKS_SLOT_ACTIVE) !== abi.LUKS_KEY_ENABLED) continue;
    const count = view.getUint32(at + abi.LUKS_SLOT_ITERATIONS);
    if (count > ITERATIONS_MAX) fail(`Keyslot ${i} iteration count ${count} is too large`);
  }
}

function unsupported(what: string, name: string | undefined): never {
  fail(`${what} '${name}' not supported`, "unsupported");
}

function fail(message: string, kind: ErrorKind = "invalid"): never {
  throw new OutportError(kind, message);
}
