/** Exports that change their iothread while clients use them. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { rename, writeFile } from "node:fs/promises";
import { attempt, nbdsh, run } from "../support/clients.ts";
import { assertFileIs, MiB, readAt } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import type { Qmp } from "../support/qmp.ts";
import { type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

const TWO_THREADS = ["--object", "iothread,id=io0", "--object", "iothread,id=io1"];
const PLACES = ["io0", "io1", null] as const;

function move(qmp: Qmp, iothread: string | null): Promise<unknown> {
  const args = { "node-name": "disk", iothread, force: true };
  return qmp.execute("x-blockdev-set-iothread", args);
}

/** Moves again and again until `work` is done. Returns how often. */
async function movingDuring(disk: Scene, work: Promise<unknown>): Promise<number> {
  let done = false;
  work.then(
    () => (done = true),
    () => (done = true),
  );
  let count = 0;
  for (let round = 0; !done; round++) {
    const refusal = await move(disk.qmp, PLACES[round % PLACES.length]!).then(
      () => "",
      (error: Error) => error.message,
    );
    // Clients may be slow to finish their requests: a busy machine.
    expect(["", "Cannot change iothread of active block backend"]).toContain(refusal);
    if (refusal === "") count++;
  }
  return count;
}

describe("an export that moves", () => {
  for (const file of ["cache.direct=off", "cache.direct=on"]) {
    test(`loses nothing that qemu-img writes and reads (${file})`, async () => {
      await using disk = await serve({ before: TWO_THREADS, bytes: 32 * MiB, file });
      const copy = `${disk.directory}/copy.raw`;
      const target = `${disk.directory}/target.raw`;
      const work = (async () => {
        await run("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk.uri, copy]);
        await run("qemu-io", ["-f", "raw", "-c", "write -P 7 1M 8M", disk.uri]);
        await run("qemu-io", ["-f", "raw", "-c", "write -P 7 1M 8M", copy]);
        await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", copy, disk.uri]);
        await run("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk.uri, target]);
      })();
      expect(await movingDuring(disk, work)).toBeGreaterThan(1);
      await work;
      await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", copy, target]);
      await run("qemu-img", ["compare", "-U", "-f", "raw", "-F", "raw", copy, disk.image]);
    });
  }

  test("answers every request of deep queues on several connections", async () => {
    await using disk = await serve({ before: TWO_THREADS, bytes: 16 * MiB });
    const client = (base: number) => `
import random
random.seed(${base})
h.connect_uri("${disk.uri}")
done = 0
for round in range(40):
    waiting = []
    for i in range(16):
        data = bytearray([random.randrange(256)]) * random.choice([512, 4096, 65536, 200000])
        offset = ${base} + i * 262144
        cookie = h.aio_pwrite(nbd.Buffer.from_bytearray(data), offset)
        waiting.append((cookie, data, offset))
    for cookie, data, offset in waiting:
        while not h.aio_command_completed(cookie): h.poll(-1)
    for cookie, data, offset in waiting:
        assert h.pread(len(data), offset) == data
        done += 1
show(done)
`;
    const work = Promise.all([0, 1, 2].map((index) => nbdsh<number>(client(index * 4 * MiB))));
    expect(await movingDuring(disk, work)).toBeGreaterThan(1);
    expect(await work).toEqual([640, 640, 640]);
  });

  test("keeps its file, though the name leads to another one by now", async () => {
    await using disk = await serve({ before: TWO_THREADS });
    const client = await disk.open();
    await rename(disk.image, `${disk.image}.old`);
    await writeFile(disk.image, disk.content);
    await move(disk.qmp, "io0");
    await client.write(0, Buffer.alloc(4096, 9));
    client.close();
    await move(disk.qmp, null);
    await assertFileIs(disk.image, disk.content);
    expect((await readAt(`${disk.image}.old`, 0, 4096)).equals(Buffer.alloc(4096, 9))).toBe(true);
  });

  test("takes all its exports along when a further one wants another thread", async () => {
    await using disk = await serve({ before: TWO_THREADS });
    const client = await disk.open();
    await client.write(0, Buffer.alloc(4096, 9));
    const nbd = { type: "nbd", "node-name": "disk" };
    const second = { ...nbd, id: "e1", name: "second", iothread: "io0", "fixed-iothread": true };
    await disk.qmp.execute("block-export-add", second);
    expect((await client.read(0, 4096))[4095]).toBe(9);
    // Now one of them holds the node where it is.
    const third = { ...nbd, id: "e2", name: "third", iothread: "io1" };
    const refusal = "Cannot change iothread of active block backend";
    await expect(
      disk.qmp.execute("block-export-add", { ...third, "fixed-iothread": true }),
    ).rejects.toThrow(refusal);
    await disk.qmp.execute("block-export-add", third);
    await expect(move(disk.qmp, "io1")).rejects.toThrow(refusal);
    await expect(disk.qmp.execute("object-del", { id: "io0" })).rejects.toThrow("in use");
    await disk.qmp.execute("object-del", { id: "io1" });
    expect((await client.read(0, 4096))[4095]).toBe(9);
    client.close();
  });

  test("stays while a client is in the middle of a request, and is not held up by it", async () => {
    await using disk = await serve({ before: TWO_THREADS, bytes: 64 * MiB });
    const lazy = await NbdClient.open({ path: disk.socket }, { exportName: "disk" });
    lazy.stream.pause();
    const reads = [0, 1, 2, 3].map((i) => lazy.read(i * 16 * MiB, 16 * MiB));
    await new Promise((resolve) => setTimeout(resolve, 200));
    await expect(move(disk.qmp, "io0")).rejects.toThrow("Cannot change iothread of active");
    const info = await attempt("nbdinfo", ["--size", disk.uri]);
    expect(info.code).toBe(0);
    lazy.stream.resume();
    for (const [i, read] of reads.entries()) {
      const wanted = disk.content.subarray(i * 16 * MiB, (i + 1) * 16 * MiB);
      expect(Buffer.compare(await read, wanted)).toBe(0);
    }
    await move(disk.qmp, "io0");
    lazy.close();
  });
});
