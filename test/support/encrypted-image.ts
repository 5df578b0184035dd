/** A small encrypted qcow2 image, for tests, and its cipher once more, written for itself. */
import { createCipheriv, createDecipheriv } from "node:crypto";
import * as abi from "../../src/abi/qcow2.ts";
import { CRYPTO_EXTENSION_BYTES } from "../../src/abi/qcow2-encryption.ts";
import { makeLuks } from "../../src/crypto/luks-create.ts";
import { emptyImage } from "./qcow2-header.ts";

const CLUSTER_BYTES = 65536;
const SECTOR_BYTES = 512;

export const PASSPHRASE = new TextEncoder().encode("Rumpelstilzchen");
/** Where the LUKS header lies. */
export const LUKS_OFFSET = 4 * CLUSTER_BYTES;

export interface EncryptedImage {
  readonly image: Uint8Array;
  readonly key: Uint8Array;
}

export const DISK_BYTES = 1024 * 1024;

/** As emptyImage(), with room for one key slot. */
export async function encryptedImage(): Promise<EncryptedImage> {
  const { area, masterKey } = await makeLuks(
    { "iter-time": 0, "cipher-alg": "aes-128" },
    PASSPHRASE,
  );
  const clusters = Math.ceil(area.length / CLUSTER_BYTES);
  const image = new Uint8Array(LUKS_OFFSET + clusters * CLUSTER_BYTES);
  image.set(emptyImage());
  image.set(area, LUKS_OFFSET);
  const view = new DataView(image.buffer);
  for (let i = 0; i < 4 + clusters; i++) view.setUint16(0x20000 + i * 2, 1);
  view.setUint32(abi.HEADER_SIZE + 4, DISK_BYTES);
  view.setUint32(abi.HEADER_CRYPT_METHOD, abi.QCOW_CRYPT_LUKS);
  const at = abi.HEADER_LENGTH_KNOWN;
  view.setUint32(at + abi.EXTENSION_TYPE, abi.QCOW2_EXT_MAGIC_CRYPTO_HEADER);
  view.setUint32(at + abi.EXTENSION_LENGTH, CRYPTO_EXTENSION_BYTES);
  view.setUint32(at + abi.EXTENSION_DATA + 4, LUKS_OFFSET);
  view.setUint32(at + abi.EXTENSION_DATA + 12, area.length);
  return { image, key: masterKey };
}

/** A sector at `host` of the data file. Spec: IEEE 1619-2007 "5.4 XTS-AES decryption" */
export function decryptSector(key: Uint8Array, host: number, data: Uint8Array): Uint8Array {
  const name = `aes-${key.length * 4}-ecb`;
  const number = Buffer.alloc(16);
  number.writeBigUInt64LE(BigInt(Math.floor(host / SECTOR_BYTES)));
  const tweaks = new Uint8Array(data.length);
  tweaks.set(createCipheriv(name, key.subarray(key.length / 2), null).update(number));
  for (let at = 16; at < data.length; at++) {
    const before = tweaks[at - 16]!;
    const carried = at % 16 === 0 ? (tweaks[at - 1]! >>> 7) * 0x87 : tweaks[at - 17]! >>> 7;
    tweaks[at] = (before << 1) ^ carried;
  }
  const cipher = createDecipheriv(name, key.subarray(0, key.length / 2), null);
  cipher.setAutoPadding(false);
  const mixed = cipher.update(data.map((byte, i) => byte ^ tweaks[i]!));
  return Uint8Array.from(mixed, (byte, i) => byte ^ tweaks[i]!);
}
