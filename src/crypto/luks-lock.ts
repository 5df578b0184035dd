/**
 * The way to an image's master key: an iothread reads what its header has, main opens that with a
 * passphrase. So neither passphrases nor long computations ever come to an iothread.
 * Thread: readLuksLock() on the iothread, the rest on main.
 * Spec: LUKS1 On-Disk Format Specification 1.2.3 "4.3 Master key recovery"
 */
import { timingSafeEqual } from "node:crypto";
import { LUKS_HEADER_BYTES, LUKS_STRIPES } from "../abi/luks.ts";
import type { ImageLock } from "../iothread/messages.ts";
import { OutportError } from "../util/error.ts";
import { afMerge } from "./af-split.ts";
import { type LuksHeader, type LuksSlot, materialBytes, parseLuksHeader } from "./luks-header.ts";
import { derive } from "./pbkdf2.ts";
import { XtsCipher } from "./xts.ts";

/** Bytes of the volume, from the start of its header on. Throws OutportError. */
export type ReadVolume = (offset: number, bytes: number) => Promise<Uint8Array>;

/** `isDetached`: the data lies elsewhere. Throws OutportError. May suspend. */
export async function readLuksLock(read: ReadVolume, isDetached = false): Promise<ImageLock> {
  const bytes = await read(0, LUKS_HEADER_BYTES);
  const header = parseLuksHeader(bytes, isDetached);
  const materials: ImageLock["materials"][number][] = [];
  for (const slot of header.slots) materials.push(await readMaterial(read, header, slot));
  return { header: bytes, materials };
}

/** Slots that can't be read don't matter if an earlier one can be opened. */
async function readMaterial(
  read: ReadVolume,
  { keyBytes }: LuksHeader,
  { isActive, offset }: LuksSlot,
): Promise<Uint8Array | string | null> {
  if (!isActive) return null;
  try {
    return await read(offset, materialBytes(keyBytes));
  } catch (error) {
    if (error instanceof OutportError) return error.message;
    throw error;
  }
}

/** Returns the master key, the caller's to wipe. Throws OutportError. May take long. */
export async function unlockLuks(lock: ImageLock, passphrase: Uint8Array): Promise<Uint8Array> {
  const header = parseLuksHeader(lock.header, true);
  for (const [i, slot] of header.slots.entries()) {
    const material = lock.materials[i] ?? null;
    if (material === null) continue;
    if (typeof material === "string") throw new OutportError("io", material);
    const key = await openSlot(header, slot, material, passphrase);
    if (await isMasterKey(header, key)) return key;
    key.fill(0);
  }
  throw new OutportError("permission", "Invalid password, cannot unlock any keyslot");
}

/** The key that this slot holds, if the passphrase is its own. */
async function openSlot(
  { hash, keyBytes }: LuksHeader,
  { salt, iterations }: LuksSlot,
  material: Uint8Array,
  passphrase: Uint8Array,
): Promise<Uint8Array> {
  const slotKey = await derive({ password: passphrase, salt, iterations, bytes: keyBytes, hash });
  const split = new Uint8Array(material.length);
  new XtsCipher(slotKey).decrypt(material, split, 0);
  const key = afMerge(split, LUKS_STRIPES, hash);
  slotKey.fill(0);
  split.fill(0);
  return key;
}

async function isMasterKey(header: LuksHeader, key: Uint8Array): Promise<boolean> {
  const { digest, digestSalt: salt, digestIterations: iterations, hash } = header;
  const bytes = digest.length;
  return timingSafeEqual(await derive({ password: key, salt, iterations, bytes, hash }), digest);
}
