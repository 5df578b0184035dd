/**
 * BlockdevOptionsQcow2, and what its options come to for an image. Pure. Thread: main (the schema),
 * iothread.
 * Spec: qapi/block-core.json BlockdevOptionsQcow2; QEMU docs/qcow2-cache.txt
 */
import * as abi from "../../../abi/qcow2.ts";
import {
  alternate,
  bool,
  enumeration,
  int,
  object,
  optional,
  str,
  union,
} from "../../../qapi/scalars.ts";
import type { ObjectMembers } from "../../../qapi/types.ts";
import { OutportError } from "../../../util/error.ts";
import type { Qcow2Header } from "./header.ts";
import type { Layout } from "./layout.ts";

const templates = ["none", "constant", "cached", "all"] as const;
const overlapCheckMode = enumeration("Qcow2OverlapCheckMode", templates);
const check = (what: string) => optional(bool, `Keep writes off ${what}`);

const overlapCheckFlags = object("Qcow2OverlapCheckFlags", {
  template: optional(overlapCheckMode, "What the members not given stand for (default: cached)"),
  "main-header": check("the header"),
  "active-l1": check("the active L1 table"),
  "active-l2": check("active L2 tables"),
  "refcount-table": check("the refcount table"),
  "refcount-block": check("refcount blocks"),
  "snapshot-table": check("the snapshot table"),
  "inactive-l1": check("the L1 tables of snapshots"),
  "inactive-l2": check("the L2 tables of snapshots"),
  "bitmap-directory": check("the directory of bitmaps"),
});

const keySecret = { "key-secret": optional(str, "Id of the secret with the key") };

export const qcow2Members = {
  "lazy-refcounts": optional(bool, "Write refcounts late (default: as the image says)"),
  "pass-discard-request": optional(bool, "Pass on discards of users (default: as discard says)"),
  "pass-discard-snapshot": optional(bool, "Discard what snapshots leave (default: true)"),
  "pass-discard-other": optional(bool, "Discard other freed clusters (default: false)"),
  "discard-no-unref": optional(bool, "Keep discarded clusters allocated (default: false)"),
  "overlap-check": optional(
    alternate("Qcow2OverlapChecks", [overlapCheckFlags, overlapCheckMode]),
    "What writes are kept off (default: cached)",
  ),
  "cache-size": optional(int, "Bytes of L2 table and refcount block cache together"),
  "l2-cache-size": optional(int, "Bytes of L2 table cache (default: the image's, to 32 MiB)"),
  "l2-cache-entry-size": optional(int, "Bytes per entry of it (default: a cluster, or 4096)"),
  "refcount-cache-size": optional(int, "Bytes of refcount block cache (default: four clusters)"),
  "cache-clean-interval": optional(int, "Seconds to keep what is unused (default: 600)"),
  encrypt: optional(
    union("BlockdevQcow2Encryption", {
      base: { format: enumeration("BlockdevQcow2EncryptionFormat", ["aes", "luks"]) },
      tag: "format",
      branches: { aes: keySecret, luks: keySecret },
    }),
    "How the image is encrypted",
  ),
} satisfies ObjectMembers;

/** All that a reopen may change or leave out. */
export const qcow2Reopenable = [
  "lazy-refcounts",
  "pass-discard-request",
  "pass-discard-snapshot",
  "pass-discard-other",
  "discard-no-unref",
  "overlap-check",
  "overlap-check.template",
  ...[
    ...["main-header", "active-l1", "active-l2", "refcount-table", "refcount-block"],
    ...["snapshot-table", "inactive-l1", "inactive-l2", "bitmap-directory"],
  ].map((name) => `overlap-check.${name}`),
  "cache-size",
  "l2-cache-size",
  "l2-cache-entry-size",
  "refcount-cache-size",
  "cache-clean-interval",
];

type Wire = Readonly<Record<string, unknown>>;

/** What the options come to. */
export interface Qcow2Settings {
  readonly l2CacheEntries: number;
  readonly l2EntryCacheBytes: number;
  readonly refcountCacheEntries: number;
  /** 0: never. */
  readonly cacheCleanSeconds: number;
  readonly lazyRefcounts: boolean;
  readonly passDiscardRequest: boolean;
  readonly passDiscardSnapshot: boolean;
  readonly passDiscardOther: boolean;
  readonly discardNoUnref: boolean;
  /** By name of what writes are kept off. */
  readonly overlapChecks: ReadonlySet<string>;
}

/** Throws OutportError in QSD's words. `unmap`: the node lets discards through. */
export function settingsOf(
  options: Wire,
  header: Qcow2Header,
  layout: Layout,
  unmap: boolean,
): Qcow2Settings {
  const caches = cacheSizes(options, header, layout);
  const interval = integer(options, "cache-clean-interval") ?? abi.DEFAULT_CACHE_CLEAN_INTERVAL;
  if (interval < 0 || interval > 2 ** 32 - 1) fail("Cache clean interval too big");
  const isLazy = (header.compatible.lo & abi.QCOW2_COMPAT_LAZY_REFCOUNTS) !== 0;
  const lazyRefcounts = flag(options, "lazy-refcounts", isLazy);
  if (lazyRefcounts && layout.version < 3) {
    fail("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
  }
  checkEncryption(options, header);
  return {
    ...caches,
    cacheCleanSeconds: interval,
    lazyRefcounts,
    passDiscardRequest: flag(options, "pass-discard-request", unmap),
    passDiscardSnapshot: flag(options, "pass-discard-snapshot", true),
    passDiscardOther: flag(options, "pass-discard-other", false),
    discardNoUnref: flag(options, "discard-no-unref", false),
    overlapChecks: overlapChecks(options),
  };
}

function cacheSizes(options: Wire, header: Qcow2Header, layout: Layout) {
  const { clusterBytes, l2EntryBytes } = layout;
  const total = size(options, "cache-size");
  const l2Given = size(options, "l2-cache-size");
  const refcountGiven = size(options, "refcount-cache-size");
  const entryGiven = size(options, "l2-cache-entry-size");
  const clusters = Math.ceil(header.bytes / clusterBytes);
  const l2Whole = Math.ceil((clusters * l2EntryBytes) / clusterBytes) * clusterBytes;
  const refcountMin = abi.MIN_REFCOUNT_CACHE_SIZE * clusterBytes;
  let l2Bytes = Math.min(l2Whole, l2Given ?? abi.DEFAULT_L2_CACHE_MAX_SIZE);
  let refcountBytes = refcountGiven ?? 0;
  if (total !== undefined) {
    if (l2Given !== undefined && refcountGiven !== undefined) {
      const names = "cache-size, l2-cache-size and refcount-cache-size";
      fail(`${names} may not be set at the same time`);
    }
    if (l2Given !== undefined && l2Given > total) fail("l2-cache-size may not exceed cache-size");
    if (refcountBytes > total) fail("refcount-cache-size may not exceed cache-size");
    if (l2Given !== undefined) {
      refcountBytes = total - l2Bytes;
    } else if (refcountGiven !== undefined) {
      l2Bytes = total - refcountBytes;
    } else if (total >= l2Whole + refcountMin) {
      l2Bytes = l2Whole;
      refcountBytes = total - l2Whole;
    } else {
      refcountBytes = Math.min(total, refcountMin);
      l2Bytes = total - refcountBytes;
    }
  }
  const isPartial = l2Bytes < l2Whole;
  const entryBytes = entryGiven ?? (isPartial ? Math.min(clusterBytes, 4096) : clusterBytes);
  const isPowerOfTwo = Number.isInteger(Math.log2(entryBytes));
  if (entryBytes < 2 ** abi.MIN_CLUSTER_BITS || entryBytes > clusterBytes || !isPowerOfTwo) {
    const range = `between ${2 ** abi.MIN_CLUSTER_BITS} and the cluster size (${clusterBytes})`;
    fail(`L2 cache entry size must be a power of two ${range}`);
  }
  const l2CacheEntries = Math.max(Math.floor(l2Bytes / entryBytes), abi.MIN_L2_CACHE_SIZE);
  const refcountCacheEntries = Math.floor(refcountBytes / clusterBytes);
  if (l2CacheEntries > 2 ** 31 - 1) fail("L2 cache size too big");
  if (refcountCacheEntries > 2 ** 31 - 1) fail("Refcount cache size too big");
  return {
    l2CacheEntries,
    l2EntryCacheBytes: entryBytes,
    refcountCacheEntries: Math.max(refcountCacheEntries, abi.MIN_REFCOUNT_CACHE_SIZE),
  };
}

const CONSTANT = [
  ...["main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory"],
  // QSD differs: it writes there, and nobody opens the image any more.
  "encryption-header",
];
const CACHED = ["active-l2", "refcount-block", "inactive-l1"];
const TEMPLATES: Readonly<Record<string, readonly string[]>> = {
  none: [],
  constant: CONSTANT,
  cached: [...CONSTANT, ...CACHED],
  all: [...CONSTANT, ...CACHED, "inactive-l2"],
};

function overlapChecks(options: Wire): ReadonlySet<string> {
  const given = options["overlap-check"] as string | Wire | undefined;
  if (given === undefined || typeof given === "string") {
    return new Set(TEMPLATES[given ?? "cached"]);
  }
  const { template = "cached", ...flags } = given;
  const names = new Set(TEMPLATES[template as string]);
  for (const [name, isOn] of Object.entries(flags)) {
    if (isOn === true) names.add(name);
    else if (isOn === false) names.delete(name);
  }
  return names;
}

/** As the header and the options say. */
function checkEncryption(options: Wire, { cryptMethod }: Qcow2Header): void {
  const given = (options.encrypt as { format: string } | undefined)?.format;
  if (cryptMethod === abi.QCOW_CRYPT_NONE) {
    if (given === undefined) return;
    fail(`No encryption in image header, but options specified format '${given}'`);
  }
  if (cryptMethod > abi.QCOW_CRYPT_LUKS) fail(`Unsupported encryption method ${cryptMethod}`);
  const format = cryptMethod === abi.QCOW_CRYPT_AES ? "aes" : "luks";
  if (given !== undefined && given !== format) {
    fail(`Header reported '${format}' encryption format but options specify '${given}'`);
  }
  if (format === "luks") return;
  // QSD differs: it opens them. What they keep secret, others find out.
  throw new OutportError("unsupported", `Encryption format '${format}' is not supported`);
}

function flag(options: Wire, name: string, otherwise: boolean): boolean {
  return (options[name] as boolean | undefined) ?? otherwise;
}

function integer(options: Wire, name: string): number | undefined {
  return options[name] as number | undefined;
}

function size(options: Wire, name: string): number | undefined {
  const value = integer(options, name);
  if (value !== undefined && value < 0) {
    fail(`Value '${value}' is out of range for parameter '${name}'`);
  }
  return value;
}

function fail(message: string): never {
  throw new OutportError("invalid", message);
}
