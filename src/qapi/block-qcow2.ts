/** What queries tell of a qcow2 image. Pure. Spec: qapi/block-core.json ImageInfoSpecificQCow2 */
import { cipherAlgorithm, cipherMode, hashAlgorithm, ivGenAlgorithm } from "./crypto.ts";
import {
  arrayOf,
  bool,
  doc,
  enumeration,
  int,
  object,
  optional,
  str,
  uint32,
  union,
} from "./scalars.ts";

const luksSlot = object("QCryptoBlockInfoLUKSSlot", {
  active: doc(bool, "A key is in it"),
  iters: optional(int, "Iterations of the derivation of its key"),
  stripes: optional(int, "Stripes of the split key"),
  "key-offset": doc(int, "Where the key material lies, bytes"),
});

const encryption = union("ImageInfoSpecificQCow2Encryption", {
  base: { format: enumeration("BlockdevQcow2EncryptionFormat", ["aes", "luks"]) },
  tag: "format",
  branches: {
    luks: {
      "cipher-alg": doc(cipherAlgorithm, "Cipher"),
      "cipher-mode": doc(cipherMode, "Mode of the cipher"),
      "ivgen-alg": doc(ivGenAlgorithm, "How initialisation vectors are made"),
      "ivgen-hash-alg": optional(hashAlgorithm, "Hash that makes them"),
      "hash-alg": doc(hashAlgorithm, "Hash of the master key"),
      "detached-header": doc(bool, "The header lies elsewhere"),
      "payload-offset": doc(int, "Where the data begins, bytes"),
      "master-key-iters": doc(int, "Iterations of the master key's digest"),
      uuid: doc(str, "UUID of the volume"),
      slots: doc(arrayOf(luksSlot), "Key slots"),
    },
  },
});

const bitmapInfo = object("Qcow2BitmapInfo", {
  name: doc(str, "Name of the bitmap"),
  granularity: doc(uint32, "Bytes per bit"),
  flags: doc(
    arrayOf(enumeration("Qcow2BitmapInfoFlags", ["in-use", "auto"])),
    "What the image says of it",
  ),
});

export const imageInfoSpecificQcow2 = object("ImageInfoSpecificQCow2", {
  compat: doc(str, "Version of the format: 0.10 or 1.1"),
  "data-file": optional(str, "The external data file, as the image names it"),
  "data-file-raw": optional(bool, "The data file can be read without the image"),
  "extended-l2": optional(bool, "Clusters have subclusters"),
  "lazy-refcounts": optional(bool, "Refcounts are written late"),
  corrupt: optional(bool, "The image is marked corrupt"),
  "refcount-bits": doc(int, "Bits per refcount"),
  encrypt: optional(encryption, "How the image is encrypted"),
  bitmaps: optional(arrayOf(bitmapInfo), "Bitmaps that the image holds"),
  "compression-type": doc(
    enumeration("Qcow2CompressionType", ["zlib", "zstd"]),
    "How compressed clusters are compressed",
  ),
});
