/** /proc/self/mountinfo with changed bytes: never an exception, and no mount that isn't sound. */
import { expect, test } from "bun:test";
import { parseMountinfo } from "../../src/runtime/mountinfo.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

const TEXT = [
  "47 27 0:42 / /run/a\\040disk ro,nosuid - fuse /dev/fuse ro,user_id=0,group_id=0",
  "28 1 254:1 /part /mnt rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,discard",
  "29 1 0:5 / /dev rw - devtmpfs none rw",
  "",
].join("\n");
const PIECES = [
  " ",
  "-",
  " - ",
  "\n",
  ":",
  "\\",
  "\\040",
  "\\777",
  ",",
  "0",
  "99999999",
  "ü",
  "\0",
];

function mutate(random: Random, text: string): string {
  let changed = text;
  for (let count = 1 + random.below(6); count > 0; count--) {
    const at = random.below(changed.length + 1);
    const end = random.chance(0.5) ? at : at + random.below(8);
    const piece = random.chance(0.7) ? random.pick(PIECES) : "";
    changed = changed.slice(0, at) + piece + changed.slice(end);
  }
  return changed;
}

test("parseMountinfo() survives changed lines", () => {
  const random = new Random(randomSeed());
  expect(parseMountinfo(TEXT)).toHaveLength(3);
  for (let i = fuzzCases(5000); i > 0; i--) {
    const text = mutate(random, TEXT);
    const mounts = parseMountinfo(text);
    expect(mounts.length).toBeLessThanOrEqual(text.split("\n").length);
    for (const { id, dev, path, options } of mounts) {
      expect(Number.isSafeInteger(id) && Number.isSafeInteger(dev)).toBe(true);
      expect(typeof path).toBe("string");
      expect(options.length).toBeGreaterThan(0);
    }
  }
});
