/**
 * What all secrets have in common: format, decryption, and that nobody reads them back.
 * Thread: main. Spec: qapi/crypto.json SecretCommonProperties; QEMU crypto/secret_common.c
 */
import { createDecipheriv } from "node:crypto";
import { enumeration, optional, str } from "../../qapi/scalars.ts";
import { invalid } from "../../util/error.ts";
import type { ObjectFinder, QomType, UserObject } from "../registry.ts";
import { decodeBase64 } from "./base64.ts";

type Wire = Readonly<Record<string, unknown>>;
type Bytes = Uint8Array<ArrayBuffer>;

const KEY_BYTES = 32;
const IV_BYTES = 16;
const BLOCK_BYTES = 16;

const format = enumeration("QCryptoSecretFormat", ["raw", "base64"]);

export const commonMembers = {
  format: optional(format, "How the data are written (default: raw)"),
  keyid: optional(str, "Secret that holds the AES-256 key of encrypted data"),
  iv: optional(str, "Initialization vector of encrypted data, in base64"),
} as const;

export const secretCommon: QomType = {
  name: "secret_common",
  abstract: true,
  userCreatable: true,
  properties: [
    { name: "iv", type: "string", schema: str },
    { name: "keyid", type: "string", schema: str },
    { name: "format", type: "QCryptoSecretFormat", schema: format },
  ],
};

export interface SecretParts {
  readonly id: string;
  readonly type: QomType;
  /** What was given, and defaults of what has some. */
  readonly options: Wire;
  readonly objects: ObjectFinder;
  /** The secret as it is written; taken over. */
  readonly written: Bytes;
}

/** Throws an OutportError that tells nothing of the secret. */
export function makeSecret(parts: SecretParts): UserObject {
  const { id, type, options, objects, written } = parts;
  const secret = clearText(id, options, objects, written);
  const values: Record<string, unknown> = { format: "raw", keyid: "", iv: "", ...options };
  return {
    type,
    secret,
    get: (name) => values[name],
    // As in QSD, what the secret was made of may change afterwards; the secret does not.
    set(name, value) {
      if (name !== "data") values[name] = value;
    },
    async delete() {
      secret.fill(0);
    },
  };
}

function clearText(id: string, options: Wire, objects: ObjectFinder, written: Bytes): Bytes {
  const { format, keyid, iv } = options as { format?: string; keyid?: string; iv?: string };
  try {
    if (keyid !== undefined) {
      if (keyid === id) throw invalid(`Secret with id '${id}' has no data`);
      return decrypt(findKey(objects, keyid), iv, format, written);
    }
    return format === "base64" ? decodeBase64(written) : written.slice();
  } finally {
    written.fill(0);
  }
}

function findKey(objects: ObjectFinder, keyid: string): Uint8Array {
  const object = objects.find(keyid);
  if (object === undefined) throw invalid(`No secret with id '${keyid}'`);
  if (object.secret === undefined) throw invalid(`Object with id '${keyid}' is not a secret`);
  if (object.secret.length !== KEY_BYTES) throw invalid("Key should be 32 bytes in length");
  return object.secret;
}

/** AES-256-CBC, padded as PKCS #7 says. */
function decrypt(
  key: Uint8Array,
  ivText: string | undefined,
  format: string | undefined,
  written: Bytes,
): Bytes {
  if (ivText === undefined) throw invalid("IV is required to decrypt secret");
  const iv = decodeBase64(new TextEncoder().encode(ivText));
  if (iv.length !== IV_BYTES) {
    throw invalid(`IV should be 16 bytes in length not ${iv.length}`);
  }
  const cipherText = format === "base64" ? decodeBase64(written) : written;
  if (cipherText.length % BLOCK_BYTES !== 0) {
    throw invalid(`Length ${cipherText.length} must be a multiple of block size 16`);
  }
  const decipher = createDecipheriv("aes-256-cbc", key, iv).setAutoPadding(false);
  const padded = new Uint8Array(cipherText.length);
  padded.set(decipher.update(cipherText));
  decipher.final();
  try {
    return padded.slice(0, padded.length - paddingBytes(padded));
  } finally {
    padded.fill(0);
  }
}

function paddingBytes(padded: Uint8Array): number {
  const count = padded.at(-1) ?? 0;
  if (count <= BLOCK_BYTES) return count;
  // QSD differs: it says how many there are, which is a byte of what may be the secret.
  throw invalid("Incorrect number of padding bytes found on decrypted data");
}
