/**
 * Every command, event and type that outport lists, against query-qmp-schema of
 * qemu-storage-daemon 11.1.3.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { introspect } from "../../../src/qapi/introspect.ts";
import { catalogue } from "../../support/catalogue.ts";
import { compareSchemas, type SchemaEntry } from "../../support/qapi-compare.ts";

/** One entry of its answer per line. */
const reference = readFileSync(
  new URL("../../support/qsd-11.1-schema.jsonl", import.meta.url),
  "utf8",
)
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line) as SchemaEntry);

/** What differs on purpose: [line of compareSchemas(), reason]. */
const DIFFERENCES: readonly (readonly [string, string])[] = [
  [
    'block-export-add<vhost-user-blk>: members is ["addr","logical-block-size","num-queues",' +
      '"serial"], not ["addr","logical-block-size","num-queues"]',
    "guests tell disks apart by their serial numbers",
  ],
];

/** By one value each: the enumerations of plug-ins, of which outport may have some only. */
const PLUG_INS = {
  "block drivers": "null-co",
  "object kinds": "throttle-group",
  "export types": "vhost-user-blk",
  "formats that tell of themselves": "vmdk",
  "character devices": "ringbuf",
  "transaction actions": "block-dirty-bitmap-merge",
};

const isPlugIn = (values: readonly string[]) =>
  Object.values(PLUG_INS).some((value) => values.includes(value));

describe("outport's schema", () => {
  const { commands, events } = catalogue();
  const ours = introspect(commands, events) as readonly SchemaEntry[];

  test("equals the reference in all that it lists, but for named differences", () => {
    expect(compareSchemas(ours, reference, isPlugIn)).toEqual(DIFFERENCES.map(([line]) => line));
  });

  test("has one definition per name", () => {
    // Types are listed by name, so a second definition shows only where the first is not.
    for (const command of commands) {
      const alone = introspect([command], []) as readonly SchemaEntry[];
      expect(compareSchemas(alone, ours, () => false)).toEqual([]);
    }
  });
});
