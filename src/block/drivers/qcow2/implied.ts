/**
 * The children that an image names itself, when the options do not: its data file and its backing
 * file. Thread: iothread; may suspend.
 * Spec: QEMU block.c bdrv_open_backing_file()
 */
import { S_IFBLK, S_IFMT } from "../../../abi/linux.ts";
import type { ImpliedChild } from "../../../iothread/messages.ts";
import { statPlace } from "../../../runtime/linux-mount.ts";
import { OutportError } from "../../../util/error.ts";
import type { OpenContext } from "../../driver.ts";
import { impliedOptions } from "../../implied-names.ts";
import { checkKeySecret } from "./encryption.ts";
import { parseExtras } from "./header.ts";
import { ImageFile } from "./image-file.ts";
import { layoutOf } from "./layout.ts";
import { readHeader } from "./open.ts";
import { settingsOf } from "./options.ts";

/** Throws OutportError: also when the image can't be opened at all. */
export async function impliedChildren(context: OpenContext): Promise<readonly ImpliedChild[]> {
  const { reactor, children, options, readOnly, discardUnmap } = context;
  const file = new ImageFile(reactor, children.file!);
  const { header, cluster } = await readHeader(file, !readOnly);
  const layout = layoutOf(header);
  settingsOf(options, header, layout, discardUnmap);
  const { backingFile, backingFormat, dataFile } = parseExtras(header, cluster);
  checkKeySecret(header, options);
  const imageFilename = children.file!.describe().exactFilename;
  const isBlockDevice = (path: string): boolean => {
    const status = statPlace(reactor.linux, path);
    return typeof status !== "number" && (status.mode & S_IFMT) === S_IFBLK;
  };
  const optionsOf = (filename: string, format: string | null) =>
    impliedOptions({ filename, format, imageFilename, isBlockDevice });
  const implied: ImpliedChild[] = [];
  if (layout.hasDataFile && dataFile !== null) {
    implied.push({ role: "data-file", options: optionsOf(dataFile, "file") });
  }
  if (backingFile !== null) {
    try {
      implied.push({ role: "backing", options: optionsOf(backingFile, backingFormat) });
    } catch (error) {
      if (!(error instanceof OutportError)) throw error;
      // It is not needed when the options name another one.
      implied.push({ role: "backing", options: {}, failure: error.message });
    }
  }
  return implied;
}
