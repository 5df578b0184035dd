/** New encrypted images: what is asked for, and their LUKS header. Thread: main, iothread. */
import { type LuksCreateOptions, luksKeyBytes, makeLuks } from "../../../crypto/luks-create.ts";
import { payloadOffset } from "../../../crypto/luks-layout.ts";
import { passphraseOf, type SecretFinder } from "../../../crypto/passphrase.ts";
import { invalid, OutportError } from "../../../util/error.ts";

/** QCryptoBlockCreateOptions */
export type EncryptOptions = LuksCreateOptions & { readonly format: "qcow" | "luks" };

/** Of the LUKS header with all key slots; 0: nothing is to be encrypted. Throws OutportError. */
export function encryptionHeaderBytes(encrypt: EncryptOptions | undefined): number {
  if (encrypt === undefined) return 0;
  checkFormat(encrypt);
  return payloadOffset(luksKeyBytes(encrypt));
}

/** The header and its first key slot. Throws OutportError. */
export async function prepareEncryption(
  encrypt: EncryptOptions | undefined,
  findSecret: SecretFinder,
): Promise<Uint8Array | undefined> {
  if (encrypt === undefined) return undefined;
  checkFormat(encrypt);
  const { "key-secret": id } = encrypt;
  if (id === undefined) throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
  const { area, masterKey } = await makeLuks(encrypt, passphraseOf(id, findSecret));
  masterKey.fill(0);
  return area;
}

function checkFormat({ format }: EncryptOptions): void {
  if (format === "luks") return;
  // QSD differs: it makes images with the old encryption of qcow, which is broken.
  throw new OutportError("unsupported", `Encryption format '${format}' is not supported`);
}
