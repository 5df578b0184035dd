/** What queries tell of a qcow2 image. Pure. Spec: qapi/block-core.json ImageInfoSpecificQCow2 */
import { luksInfoMembers } from "./crypto.ts";
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

const encryption = union("ImageInfoSpecificQCow2Encryption", {
  base: { format: enumeration("BlockdevQcow2EncryptionFormat", ["aes", "luks"]) },
  tag: "format",
  branches: {
    luks: luksInfoMembers,
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
