/**
 * Which format an image has, by its first bytes: for the quick start of the command line alone.
 * Everywhere else the format is named, as content may be a guest's, who could make a raw disk look
 * like any format, such as one that names other files of the host. Pure.
 */
import { OutportError } from "../util/error.ts";
import type { BlockDriver } from "./driver.ts";

/** What is looked at. */
export const PROBE_BYTES = 512;

/** Formats that are not served so: their images are no raw disks. Spec: QEMU block/*.c *_probe() */
const OTHER_FORMATS: readonly (readonly [format: string, start: string])[] = [
  ["qcow", "QFI\xfb\x00\x00\x00\x01"],
  ["qed", "QED\0"],
  ["luks", "LUKS\xba\xbe"],
  ["parallels", "WithoutFreeSpace"],
  ["parallels", "WithouFreSpacExt"],
  ["bochs", "Bochs Virtual HD Image"],
  ["cloop", "#!/bin/sh\n#V2.0 Format\n"],
];

/** Its driver; undefined: nothing tells. Throws OutportError for a format that outport lacks. */
export function probeFormat(
  drivers: readonly BlockDriver[],
  start: Uint8Array,
): BlockDriver | undefined {
  const driver = drivers.find(({ probe }) => probe?.(start) === true);
  if (driver !== undefined) return driver;
  const other = OTHER_FORMATS.find(([, text]) => startsWith(start, text));
  if (other === undefined) return undefined;
  // Its driver needs a key, and the quick start takes none.
  if (other[0] === "luks") {
    throw new OutportError("unsupported", "The image is encrypted: use --object and --blockdev");
  }
  throw new OutportError("unsupported", `Images of format '${other[0]}' are not supported`);
}

/** `text`: one character for each byte. */
export function startsWith(start: Uint8Array, text: string): boolean {
  if (start.length < text.length) return false;
  return [...text].every((character, at) => start[at] === character.charCodeAt(0));
}
