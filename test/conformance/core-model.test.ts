/** Thousands of random concurrent requests leave exactly the bytes that a byte array predicts. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { assertSameBytes, MiB } from "../support/images.ts";
import { type Mode, NbdClient } from "../support/nbd-client.ts";
import { randomSeed } from "../support/random.ts";
import { DiskModel } from "./disk-model.ts";
import { type Scene, type ServeOptions, serve } from "./scene.ts";

setDefaultTimeout(180_000);

const OPERATIONS = 6_000;
const DEPTH = 6;
const BYTES = 2 * MiB;

const seedBase = randomSeed();

function openClient(disk: Scene, mode: Mode): Promise<NbdClient> {
  const contexts = mode === "simple" ? {} : { contexts: ["base:allocation"] };
  return NbdClient.open({ path: disk.socket }, { exportName: "disk", mode, ...contexts });
}

const UNMAP = "discard=unmap";
const CASES: readonly (readonly [string, ServeOptions, readonly Mode[]])[] = [
  [
    "with every kind of reply",
    { file: UNMAP, raw: UNMAP },
    ["simple", "structured", "extended", "structured"],
  ],
  [
    "with cache.direct=on, where odd edges are read, changed and written",
    { file: `${UNMAP},cache.direct=on`, raw: UNMAP },
    ["structured", "extended", "simple"],
  ],
  [
    "in an iothread with writethrough=on",
    {
      file: UNMAP,
      raw: UNMAP,
      before: ["--object", "iothread,id=io0"],
      export: "writable=on,writethrough=on,iothread=io0",
    },
    ["extended", "structured"],
  ],
];

describe("random operations", () => {
  for (const [index, [title, options, modes]] of CASES.entries()) {
    test(title, async () => {
      const seed = seedBase + index;
      await using disk = await serve({ bytes: BYTES, ...options });
      const model = new DiskModel(disk.content, seed);
      const clients = await Promise.all(modes.map((mode) => openClient(disk, mode)));
      await model.run(clients, OPERATIONS, DEPTH);
      const seen = await clients[0]?.read(0, BYTES);
      assertSameBytes(seen ?? new Uint8Array(0), model.content, `seed ${seed}: the export`);
      await Promise.all(clients.map((client) => client.disconnect()));
      assertSameBytes(await readFile(disk.image), model.content, `seed ${seed}: the image`);
      expect(model.counts.size).toBe(8);
    });
  }

  test("through a raw window change nothing outside of it", async () => {
    const window = `offset=${MiB},size=${MiB}`;
    await using disk = await serve({ bytes: 3 * MiB, file: UNMAP, raw: `${UNMAP},${window}` });
    const model = new DiskModel(disk.content.subarray(MiB, 2 * MiB), seedBase + CASES.length);
    const clients = [await openClient(disk, "structured"), await openClient(disk, "simple")];
    await model.run(clients, 2_000, DEPTH);
    await Promise.all(clients.map((client) => client.disconnect()));
    const wanted = Buffer.from(disk.content);
    model.content.copy(wanted, MiB);
    assertSameBytes(await readFile(disk.image), wanted, `seed ${seedBase}`);
  });
});
