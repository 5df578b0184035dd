/** The passphrase that a secret holds. Pure. Thread: main. */
import { invalid, OutportError } from "../util/error.ts";

/** Finds an object that a user created. */
export type SecretFinder = (id: string) => { readonly secret?: Uint8Array } | undefined;

/** Throws OutportError. What is returned is the object's own. */
export function passphraseOf(id: string, find: SecretFinder): Uint8Array {
  const object = find(id);
  if (object === undefined) throw new OutportError("not-found", `No secret with id '${id}'`);
  const { secret } = object;
  if (secret === undefined) throw invalid(`Object with id '${id}' is not a secret`);
  if (secret.includes(0) || !isUtf8(secret)) {
    throw invalid(`Data from secret ${id} is not valid UTF-8`);
  }
  return secret;
}

function isUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}
