/**
 * Makes test/unit/abi/virtio.json: what the C headers of Linux say about the names that
 * src/abi/{virtio-blk,virtio-ring,memfd}.ts export. Run where there is a C compiler, with
 * `bun test/support/abi-generate-virtio.ts`; the tests only read its result.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as memfd from "../../src/abi/memfd.ts";
import * as blk from "../../src/abi/virtio-blk.ts";
import * as ring from "../../src/abi/virtio-ring.ts";

const HEADERS = [
  "fcntl.h",
  "stddef.h",
  "stdio.h",
  "sys/mman.h",
  "linux/virtio_blk.h",
  "linux/virtio_config.h",
  "linux/virtio_ring.h",
];

/** Our prefixes of offsets, and the structures that they are in. */
const STRUCTURES: readonly (readonly [prefix: string, type: string])[] = [
  ["VIRTIO_BLK_CONFIG_", "struct virtio_blk_config"],
  ["VIRTIO_BLK_OUTHDR_", "struct virtio_blk_outhdr"],
  ["VIRTIO_BLK_DISCARD_WRITE_ZEROES_", "struct virtio_blk_discard_write_zeroes"],
  ["PVIRTQ_EVENT_SUPPRESS_", "struct vring_packed_desc_event"],
  ["PVIRTQ_DESC_", "struct vring_packed_desc"],
  ["VIRTQ_DESC_", "struct vring_desc"],
];

/** Names of the specification that the headers have in other words. */
const ALIASES: Readonly<Record<string, string>> = {
  VIRTIO_F_INDIRECT_DESC: "VIRTIO_RING_F_INDIRECT_DESC",
  VIRTIO_F_EVENT_IDX: "VIRTIO_RING_F_EVENT_IDX",
  VIRTQ_DESC_F_NEXT: "VRING_DESC_F_NEXT",
  VIRTQ_DESC_F_WRITE: "VRING_DESC_F_WRITE",
  VIRTQ_DESC_F_INDIRECT: "VRING_DESC_F_INDIRECT",
  VIRTQ_DESC_F_AVAIL: "1 << VRING_PACKED_DESC_F_AVAIL",
  VIRTQ_DESC_F_USED: "1 << VRING_PACKED_DESC_F_USED",
  VIRTQ_AVAIL_F_NO_INTERRUPT: "VRING_AVAIL_F_NO_INTERRUPT",
  VIRTQ_USED_F_NO_NOTIFY: "VRING_USED_F_NO_NOTIFY",
  RING_EVENT_FLAGS_ENABLE: "VRING_PACKED_EVENT_FLAG_ENABLE",
  RING_EVENT_FLAGS_DISABLE: "VRING_PACKED_EVENT_FLAG_DISABLE",
  RING_EVENT_FLAGS_DESC: "VRING_PACKED_EVENT_FLAG_DESC",
  PVIRTQ_EVENT_WRAP: "1 << VRING_PACKED_EVENT_F_WRAP_CTR",
};

/** Views of our own, the specification's limits, and what is younger than the headers. */
const OURS = new RegExp(
  [
    "_(U16|U32|MASK)$",
    "^VIRTIO_BLK_(CONFIG_SIZE|CONFIG_ZONED|SECTOR_BYTES|F_LIFETIME|F_ZONED|T_GET_LIFETIME)$",
    "^VIRTQ_SIZE_MAX$",
    "^VIRTIO_F_NOTIF",
  ].join("|"),
);

function expressionOf(name: string): string {
  const alias = ALIASES[name];
  if (alias !== undefined) return alias;
  const found = STRUCTURES.find(([prefix]) => name.startsWith(prefix));
  if (found === undefined) return name;
  const [prefix, type] = found;
  const field = name.slice(prefix.length).toLowerCase();
  return field === "size" ? `sizeof(${type})` : `offsetof(${type}, ${field})`;
}

const names = Object.entries({ ...blk, ...ring, ...memfd })
  .filter(([name, value]) => typeof value === "number" && !OURS.test(name))
  .map(([name]) => name);

const folder = mkdtempSync(join(tmpdir(), "abi-"));
try {
  const lines = names.map((name) => {
    return `printf("${name} %lld\\n", (long long)(${expressionOf(name)}));`;
  });
  const includes = HEADERS.map((name) => `#include <${name}>`);
  const program = ["#define _GNU_SOURCE", ...includes, "int main(void) {", ...lines, "}"];
  writeFileSync(join(folder, "abi.c"), program.join("\n"));
  execFileSync("cc", ["-w", "-o", join(folder, "abi"), join(folder, "abi.c")]);
  const output = execFileSync(join(folder, "abi"), { encoding: "utf8" }).trim();
  const values = output.split("\n").map((line) => line.split(" ") as [string, string]);
  const json = Object.fromEntries(values.map(([name, value]) => [name, Number(value)]));
  const target = new URL("../unit/abi/virtio.json", import.meta.url);
  writeFileSync(target, `${JSON.stringify(json, null, 2)}\n`);
} finally {
  rmSync(folder, { recursive: true });
}
