/** A qcow2 image as the subject of crash tests: checked and read by the independent reader. */
import {
  checkImage,
  describeCorruptions,
  type ImageParts,
  memorySource,
  Qcow2Image,
} from "../support/qcow2-reader.ts";
import { SECTOR_BYTES } from "./disk.ts";
import { FIRST_VERSION, firstVersions, ZERO_VERSION } from "./guest-model.ts";
import type { PowerCutSubject } from "./power-cut.ts";

export interface Qcow2SubjectParts {
  /** As `qemu-img` makes it. */
  readonly image: Uint8Array;
  /** What the backing image shows: firstVersions(0, its bytes). Missing: there is none. */
  readonly backing?: Uint8Array;
  /** The image has firstVersions() of so many bytes, and so have all of its snapshots. */
  readonly contentBytes?: number;
  readonly open: PowerCutSubject["open"];
  readonly decrypt?: ImageParts["decrypt"];
}

export function qcow2Subject(parts: Qcow2SubjectParts): PowerCutSubject {
  const { image, backing, contentBytes = 0, open, decrypt } = parts;
  const imageOf = (content: Uint8Array): Qcow2Image => {
    const below = backing === undefined ? null : memorySource(backing);
    const source = memorySource(content);
    return new Qcow2Image({ source, backing: below, ...(decrypt && { decrypt }) });
  };
  const { header } = imageOf(image);
  const firstSectors = Math.max(backing?.length ?? 0, contentBytes) / SECTOR_BYTES;
  const first = firstVersions(0, contentBytes);
  return {
    image,
    bytes: header.bytes,
    clusterBytes: header.clusterBytes,
    initial: (sector) => (sector < firstSectors ? FIRST_VERSION : ZERO_VERSION),
    open,
    check: (content, clean) => {
      const opened = imageOf(content);
      for (const snapshot of opened.snapshots) {
        const seen = opened.readSnapshot(snapshot, 0, contentBytes);
        if (Buffer.compare(seen, first) !== 0) return `snapshot ${snapshot.name} has changed`;
      }
      const result = checkImage(opened);
      const leaks = result.leaks.length;
      return describeCorruptions(result) || (clean && leaks > 0 ? `${leaks} clusters leaked` : "");
    },
    read: (content) => imageOf(content).read(0, header.bytes),
  };
}
