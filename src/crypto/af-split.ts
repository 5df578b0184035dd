/**
 * Anti-forensic splitting: spreads a key over so many stripes that one of them gone is the key
 * gone. Pure. Thread: main.
 * Spec: LUKS1 On-Disk Format Specification 1.2.3 "2.4 AF-Splitter"
 */
import { createHash, randomBytes } from "node:crypto";
import { assert } from "../util/error.ts";

/** Returns `stripes` × the length of the key. */
export function afSplit(key: Uint8Array, stripes: number, hash: string): Uint8Array<ArrayBuffer> {
  const bytes = key.length;
  const split = new Uint8Array(bytes * stripes);
  split.set(randomBytes(bytes * (stripes - 1)));
  const sum = diffusedSum(split.subarray(0, bytes * (stripes - 1)), bytes, hash);
  const last = split.subarray(bytes * (stripes - 1));
  for (let i = 0; i < bytes; i++) last[i] = sum[i]! ^ key[i]!;
  sum.fill(0);
  return split;
}

/** The opposite: the key. */
export function afMerge(split: Uint8Array, stripes: number, hash: string): Uint8Array<ArrayBuffer> {
  const bytes = split.length / stripes;
  assert(Number.isInteger(bytes), "stripes are of one length");
  const key = diffusedSum(split.subarray(0, bytes * (stripes - 1)), bytes, hash);
  const last = split.subarray(bytes * (stripes - 1));
  for (let i = 0; i < bytes; i++) key[i]! ^= last[i]!;
  return key;
}

/** Of all stripes but the last. */
function diffusedSum(stripes: Uint8Array, bytes: number, hash: string): Uint8Array<ArrayBuffer> {
  const sum = new Uint8Array(bytes);
  for (let at = 0; at < stripes.length; at += bytes) {
    for (let i = 0; i < bytes; i++) sum[i]! ^= stripes[at + i]!;
    diffuse(sum, hash);
  }
  return sum;
}

/** Each part of a digest's length becomes its digest, with its number in front. */
function diffuse(bytes: Uint8Array, hash: string): void {
  const number = new Uint8Array(4);
  for (let at = 0, i = 0; at < bytes.length; i++) {
    new DataView(number.buffer).setUint32(0, i);
    const digestBytes = DIGEST_BYTES.get(hash)!;
    const part = bytes.subarray(at, at + digestBytes);
    const digest = createHash(hash).update(number).update(part).digest();
    part.set(digest.subarray(0, part.length));
    at += part.length;
  }
}

/** The hashes that are supported, with the lengths of their digests. */
export const DIGEST_BYTES: ReadonlyMap<string, number> = new Map([
  ["sha1", 20],
  ["sha256", 32],
  ["sha512", 64],
]);
