/** The quick start: one image on the command line, and nothing else. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import { run } from "../support/clients.ts";
import { MiB, pattern, type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { runDaemon, sleep, startDaemon } from "../support/process.ts";

setDefaultTimeout(30_000);

const NBD_FLAG_READ_ONLY = 2;

const create = (...args: string[]) => run("qemu-img", ["create", "-q", "-f", ...args]);

/** What is served of the image: whether for reading only, and what was said. */
async function serveQuickly(directory: TemporaryDirectory, ...args: string[]) {
  const cwd = directory.path;
  const running = await startDaemon(cwd, args, { cwd, env: { XDG_RUNTIME_DIR: cwd } });
  // It is written by then, and may be on its way.
  while (running.daemon.stdout === "") await sleep(2);
  const path = /socket=(.*)\n/.exec(running.daemon.stdout)?.[1] ?? "";
  expect(running.daemon.stdout).toBe(`nbd+unix:///disk?socket=${path}\n`);
  const address = { path: resolve(cwd, path) };
  const client = await NbdClient.open(address, { exportName: "disk" });
  return { ...running, client, path, readOnly: (client.facts.flags & NBD_FLAG_READ_ONLY) !== 0 };
}

describe("outport IMAGE", () => {
  test("serves a qcow2 image, writable, and leaves no socket", async () => {
    await using directory = await temporaryDirectory();
    await create("qcow2", directory.file("disk.img"), "8M");
    {
      await using quick = await serveQuickly(directory, "disk.img");
      expect([quick.client.facts.bytes, quick.readOnly]).toEqual([8 * MiB, false]);
      expect(quick.path).toBe(directory.file(`outport-${quick.daemon.pid}.sock`));
      await quick.client.write(MiB, pattern(512));
      await quick.client.disconnect();
      expect(existsSync(quick.path)).toBe(true);
      expect(quick.daemon.stderr).toBe("");
    }
    await run("qemu-img", ["check", "-q", directory.file("disk.img")]);
    expect(existsSync(directory.file("outport-1.sock"))).toBe(false);
  });

  test("takes what it does not know for a raw disk, and lets nobody write to that", async () => {
    await using directory = await temporaryDirectory();
    await writeFile(directory.file("disk.img"), pattern(MiB));
    {
      await using quick = await serveQuickly(directory, "--socket", "here.sock", "disk.img");
      expect([quick.path, quick.readOnly]).toEqual(["here.sock", true]);
      expect(quick.daemon.stderr).toContain("'disk.img' looks like a raw disk");
      quick.client.close();
    }
    await using quick = await serveQuickly(directory, "disk.img", "--format", "raw");
    expect([quick.readOnly, quick.daemon.stderr]).toEqual([false, ""]);
    quick.client.close();
  });

  test("serves an empty file", async () => {
    await using directory = await temporaryDirectory();
    await writeFile(directory.file("disk.img"), "");
    await using quick = await serveQuickly(directory, "disk.img");
    expect([quick.client.facts.bytes, quick.readOnly]).toEqual([0, true]);
    quick.client.close();
  });

  test("opens no file that a guessed image names", async () => {
    await using directory = await temporaryDirectory();
    const cwd = directory.path;
    await create("raw", directory.file("secret"), "1M");
    await create("qcow2", "-b", "secret", "-F", "raw", directory.file("disk.img"));
    const dataFile = `data_file=${directory.file("data")}`;
    await create("qcow2", "-o", dataFile, directory.file("split.img"), "1M");
    for (const name of ["disk.img", "split.img"]) {
      const { exit, stderr } = await runDaemon([name], { cwd });
      expect([exit, stderr]).toEqual([
        1,
        `outport: ${name}: The image looks like qcow2 and names other files to open: ` +
          "use --format qcow2 if that is meant to be\n",
      ]);
    }
    await using quick = await serveQuickly(directory, "disk.img", "--format", "qcow2");
    expect(quick.client.facts.bytes).toBe(MiB);
    quick.client.close();
  });

  test("serves formats that are only read, and --read-only, for reading", async () => {
    await using directory = await temporaryDirectory();
    await create("vmdk", directory.file("disk.vmdk"), "1M");
    await create("qcow2", directory.file("disk.qcow2"), "1M");
    for (const args of [["disk.vmdk"], ["disk.qcow2", "--read-only"]]) {
      await using quick = await serveQuickly(directory, ...args);
      expect([quick.readOnly, quick.daemon.stderr]).toEqual([true, ""]);
      quick.client.close();
    }
  });

  test("says what is wrong", async () => {
    await using directory = await temporaryDirectory();
    await writeFile(directory.file("luks.img"), "LUKS\xba\xbe".padEnd(512), "latin1");
    const cases: [string[], string][] = [
      [["none.img"], "none.img: Could not open 'none.img': No such file or directory"],
      [["luks.img"], "luks.img: The image is encrypted: use --object and --blockdev"],
      [
        ["--format", "null-co", "luks.img"],
        "luks.img: Parameter 'format' does not accept value 'null-co'",
      ],
    ];
    for (const [args, message] of cases) {
      const { exit, stderr } = await runDaemon(args, { cwd: directory.path });
      expect([exit, stderr]).toEqual([1, `outport: ${message}\n`]);
    }
    await create("qcow2", directory.file("used.img"), "1M");
    await using quick = await serveQuickly(directory, "used.img");
    const { exit, stderr } = await runDaemon(["used.img"], { cwd: directory.path });
    const advice = "Is another process using the image [used.img]?";
    expect([exit, stderr]).toEqual([
      1,
      `outport: used.img: Failed to get "write" lock\n${advice}\n`,
    ]);
    quick.client.close();
  });
});
