/** What queries tell of an image. Thread: iothread. Spec: qapi/block-core.json ImageInfo */
import * as abi from "../../../abi/qcow2.ts";
import { luksInfo } from "../../../crypto/luks-info.ts";
import { SECTOR_BYTES } from "../../../crypto/xts.ts";
import type { NodeDescription } from "../../../iothread/messages.ts";
import { impliedPath } from "../../implied-names.ts";
import type { Image } from "./image.ts";
import type { Snapshot } from "./snapshots.ts";

export function describeImage(image: Image): NodeDescription {
  const { header, layout, extras, encryption } = image;
  const { incompatible, compatible } = header;
  const has = (bit: number): boolean => (incompatible.lo & bit) !== 0;
  const isZstd = header.compressionType === abi.QCOW2_COMPRESSION_TYPE_ZSTD;
  const ofV3 = {
    "lazy-refcounts": (compatible.lo & abi.QCOW2_COMPAT_LAZY_REFCOUNTS) !== 0,
    corrupt: has(abi.QCOW2_INCOMPAT_CORRUPT),
    "extended-l2": layout.hasSubclusters,
    ...(image.bitmaps.list.length === 0 ? {} : { bitmaps: bitmapsOf(image) }),
    ...(extras.dataFile === null ? {} : { "data-file": extras.dataFile }),
    ...(layout.hasDataFile ? { "data-file-raw": layout.isDataFileRaw } : {}),
  };
  return {
    ...actualBytesOf(image),
    image: {
      "dirty-flag": has(abi.QCOW2_INCOMPAT_DIRTY),
      "cluster-size": layout.clusterBytes,
      ...(encryption === null ? {} : { encrypted: true }),
      ...(extras.backingFile === null ? {} : backingFacts(image, extras.backingFile)),
      ...(image.snapshots.length === 0 ? {} : { snapshots: snapshotsOf(image) }),
      "format-specific": {
        type: "qcow2",
        data: {
          compat: layout.version === 2 ? "0.10" : "1.1",
          "refcount-bits": layout.refcountBits,
          "compression-type": isZstd ? "zstd" : "zlib",
          ...(encryption === null
            ? {}
            : { encrypt: { format: "luks", ...luksInfo(encryption.header) } }),
          ...(layout.version === 2 ? {} : ofV3),
        },
      },
    },
    limits: {
      "request-alignment": encryption === null ? 1 : SECTOR_BYTES,
      "write-zeroes-alignment": layout.subclusterBytes,
      "discard-alignment": layout.clusterBytes,
    },
  };
}

/** What its files take on the host, where they can say. */
function actualBytesOf({ file, dataFile }: Image): Pick<NodeDescription, "actualBytes"> {
  const files = dataFile === null ? [file] : [file, dataFile];
  const actualBytes = files.reduce((sum, { node }) => {
    return sum + (node.describe().actualBytes ?? Number.NaN);
  }, 0);
  return Number.isNaN(actualBytes) ? {} : { actualBytes };
}

function backingFacts({ extras, file }: Image, name: string): Record<string, string> {
  const { backingFormat } = extras;
  const full = fullBackingFilename(name, file.node.describe().exactFilename);
  return {
    "backing-filename": name,
    ...(full === undefined ? {} : { "full-backing-filename": full }),
    ...(backingFormat === null ? {} : { "backing-filename-format": backingFormat }),
  };
}

/** Undefined: it is no path. */
function fullBackingFilename(
  filename: string,
  imageFilename: string | undefined,
): string | undefined {
  if (filename.startsWith("json:")) return filename;
  try {
    return impliedPath({ filename, imageFilename });
  } catch {
    return filename;
  }
}

function bitmapsOf({ bitmaps }: Image): Record<string, unknown>[] {
  return bitmaps.list.map(({ name, granularityBits, isInUse, isAuto }) => ({
    name,
    granularity: 2 ** granularityBits,
    flags: [...(isInUse ? ["in-use"] : []), ...(isAuto ? ["auto"] : [])],
  }));
}

function snapshotsOf({ snapshots }: Image): Record<string, unknown>[] {
  return snapshots.map(snapshotInfo);
}

/** SnapshotInfo, wire names. */
export function snapshotInfo(snapshot: Snapshot): Record<string, unknown> {
  return {
    id: snapshot.id,
    name: snapshot.name,
    "vm-state-size": snapshot.vmStateBytes,
    "date-sec": snapshot.dateSeconds,
    "date-nsec": snapshot.dateNanoseconds,
    "vm-clock-sec": Number(snapshot.vmClockNs / 1_000_000_000n),
    "vm-clock-nsec": Number(snapshot.vmClockNs % 1_000_000_000n),
    ...(snapshot.icount === null ? {} : { icount: snapshot.icount }),
  };
}
