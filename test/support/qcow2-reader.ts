/**
 * An independent reader and checker of qcow2 images for tests: written from the specification,
 * sharing nothing with the driver. Spec: QEMU docs/interop/qcow2.rst
 */
import { readFileSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { Qcow2Image } from "./qcow2-reader/image.ts";
import { FileSource, memorySource, type Source } from "./qcow2-reader/source.ts";

export {
  type CheckResult,
  checkImage,
  describeCorruptions,
} from "./qcow2-reader/check.ts";
export type { BitmapEntry, Header, Snapshot } from "./qcow2-reader/header.ts";
export { type ImageParts, type Mapping, Qcow2Image } from "./qcow2-reader/image.ts";
export { FileSource, memorySource, type Source } from "./qcow2-reader/source.ts";

const QCOW2_MAGIC = "QFI\xfb";

/** The guest's disk of a file, with its backing files and data file: raw or qcow2 by what it is. */
export function openChain(path: string): Source {
  return isQcow2(path) ? openImage(path) : new FileSource(path);
}

export function openImage(path: string): Qcow2Image {
  const source = memorySource(readFileSync(path));
  const { backingFile, backingFormat, dataFile } = new Qcow2Image({ source, dataFile: source })
    .header;
  const beside = (name: string) => (isAbsolute(name) ? name : join(dirname(path), name));
  const openBacking = backingFormat === "raw" ? (name: string) => new FileSource(name) : openChain;
  return new Qcow2Image({
    source,
    backing: backingFile === null ? null : openBacking(beside(backingFile)),
    dataFile: dataFile === null ? null : new FileSource(beside(dataFile)),
  });
}

function isQcow2(path: string): boolean {
  const file = new FileSource(path);
  const magic = String.fromCharCode(...file.read(0, 4));
  file.close();
  return magic === QCOW2_MAGIC;
}
