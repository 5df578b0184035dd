/** How images are encrypted. Pure. Spec: qapi/crypto.json */
import { arrayOf, bool, doc, enumeration, int, object, optional, str, union } from "./scalars.ts";

export const cipherAlgorithm = enumeration("QCryptoCipherAlgo", [
  "aes-128",
  "aes-192",
  "aes-256",
  "des",
  "3des",
  "cast5-128",
  "serpent-128",
  "serpent-192",
  "serpent-256",
  "twofish-128",
  "twofish-192",
  "twofish-256",
  "sm4",
]);
export const hashAlgorithm = enumeration("QCryptoHashAlgo", [
  "md5",
  "sha1",
  "sha224",
  "sha256",
  "sha384",
  "sha512",
  "ripemd160",
  "sm3",
]);

export const cipherMode = enumeration("QCryptoCipherMode", ["ecb", "cbc", "xts", "ctr"]);

export const ivGenAlgorithm = enumeration("QCryptoIVGenAlgo", ["plain", "plain64", "essiv"]);

const keySecret = { "key-secret": optional(str, "Id of the secret with the key") };

/** Of a new LUKS volume. */
export const luksCreateMembers = {
  ...keySecret,
  "cipher-alg": optional(cipherAlgorithm, "Cipher: aes-128 or aes-256 (default: aes-256)"),
  "cipher-mode": optional(cipherMode, "Mode of the cipher: xts"),
  "ivgen-alg": optional(ivGenAlgorithm, "How initialisation vectors are made: plain64"),
  "ivgen-hash-alg": optional(hashAlgorithm, "Kept for others: plain64 has no hash"),
  "hash-alg": optional(hashAlgorithm, "sha1, sha256 or sha512 (default: sha256)"),
  "iter-time": optional(int, "Milliseconds that trying one key is to take (default: 2000)"),
};

export const cryptoCreateOptions = union("QCryptoBlockCreateOptions", {
  base: { format: enumeration("QCryptoBlockFormat", ["qcow", "luks"]) },
  tag: "format",
  branches: { qcow: keySecret, luks: luksCreateMembers },
});

const luksSlot = object("QCryptoBlockInfoLUKSSlot", {
  active: doc(bool, "A key is in it"),
  iters: optional(int, "Iterations of the derivation of its key"),
  stripes: optional(int, "Stripes of the split key"),
  "key-offset": doc(int, "Where the key material lies, bytes"),
});

/** QCryptoBlockInfoLUKS */
export const luksInfoMembers = {
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
};

export const imageInfoSpecificLuks = object("QCryptoBlockInfoLUKS", luksInfoMembers);
