/**
 * What main needs to find the key of an encrypted image. Thread: iothread; may suspend.
 */
import { readLuksLock } from "../../../crypto/luks-lock.ts";
import type { ImageLock } from "../../../iothread/messages.ts";
import type { OpenContext } from "../../driver.ts";
import { encryptionPlace, readerOf } from "./encryption.ts";
import { parseExtras } from "./header.ts";
import { ImageFile } from "./image-file.ts";
import { layoutOf } from "./layout.ts";
import { readHeader } from "./open.ts";
import { settingsOf } from "./options.ts";

/** See BlockDriver.encryption. */
export async function readImageLock(context: OpenContext): Promise<ImageLock | null> {
  const { reactor, children, options, readOnly, discardUnmap } = context;
  const file = new ImageFile(reactor, children.file!);
  const { header, cluster } = await readHeader(file, !readOnly);
  settingsOf(options, header, layoutOf(header), discardUnmap);
  const place = encryptionPlace(header, parseExtras(header, cluster));
  return place === null ? null : readLuksLock(readerOf(file, place));
}
