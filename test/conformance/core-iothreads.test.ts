/** Exports in threads of their own. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { run } from "../support/clients.ts";
import { assertSameBytes, MiB, patternImage } from "../support/images.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

const TWO_THREADS = ["--object", "iothread,id=io0", "--object", "iothread,id=io1"];

describe("an export in an iothread", () => {
  test("serves like any other", async () => {
    await using disk = await serve({
      before: TWO_THREADS,
      export: "writable=on,iothread=io0",
    });
    await run("qemu-io", ["-f", "raw", "-c", "write -P 2 0 1M", "-c", "flush", disk.uri]);
    const client = await disk.open();
    assertSameBytes(await client.read(0, 512), Buffer.alloc(512, 2));
    assertSameBytes(await client.read(MiB, 512), disk.content.subarray(MiB, MiB + 512));
    client.close();
  });

  test("works beside one in another thread and one in the first, at the same time", async () => {
    await using disk = await serve({ before: TWO_THREADS });
    const { qmp } = disk;
    const contents = new Map([["disk", disk.content]]);
    for (const [index, iothread] of ["io0", "io1"].entries()) {
      const name = `other${index}`;
      const filename = `${disk.directory}/${name}.raw`;
      contents.set(name, await patternImage(filename, 2 * MiB, 20 + index));
      await qmp.execute("blockdev-add", { driver: "file", "node-name": name, filename });
      const nbd = { type: "nbd", id: name, "node-name": name, iothread, "fixed-iothread": true };
      await qmp.execute("block-export-add", nbd);
    }
    const reads = [...contents].map(async ([name, content]) => {
      const client = await disk.open(name);
      for (let offset = 0; offset < 2 * MiB; offset += 65_536) {
        const wanted = content.subarray(offset, offset + 65_536);
        assertSameBytes(await client.read(offset, 65_536), wanted, name);
      }
      client.close();
    });
    await Promise.all(reads);
  });

  test("keeps its thread: object-del is refused until the export is gone", async () => {
    await using disk = await serve({ before: TWO_THREADS, export: "iothread=io0" });
    const { qmp } = disk;
    await expect(qmp.execute("object-del", { id: "io0" })).rejects.toThrow("in use");
    const client = await disk.open();
    assertSameBytes(await client.read(0, 512), disk.content.subarray(0, 512));
    client.close();
    await qmp.execute("object-del", { id: "io1" });
    await qmp.execute("block-export-del", { id: "e0", mode: "hard" });
    await qmp.event("BLOCK_EXPORT_DELETED");
    await qmp.execute("blockdev-del", { "node-name": "disk" });
    await qmp.execute("blockdev-del", { "node-name": "disk-file" });
    await qmp.execute("object-del", { id: "io0" });
  });
});

describe("object-add", () => {
  test("makes an iothread, and knows names and kinds", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const iothread = { "qom-type": "iothread", id: "io0", "poll-max-ns": 1000 };
    await qmp.execute("object-add", iothread);
    await expect(qmp.execute("object-add", iothread)).rejects.toThrow(
      "attempt to add duplicate property 'io0' to object (type 'container')",
    );
    await expect(qmp.execute("object-del", { id: "zz" })).rejects.toThrow("object 'zz' not found");
    await expect(qmp.execute("object-add", { "qom-type": "nosuch", id: "x" })).rejects.toThrow(
      "Parameter 'qom-type' does not accept value 'nosuch'",
    );
    await qmp.execute("object-del", { id: "io0" });
    await qmp.execute("object-add", iothread);
  });
});
