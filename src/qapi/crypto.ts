/** How images are encrypted. Pure. Spec: qapi/crypto.json */
import { enumeration } from "./scalars.ts";

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
