/**
 * The life of a FUSE export: it comes and goes hundreds of times, is unmounted by others, is busy
 * when it is deleted, and its daemon ends in every way. No mount, process or descriptor stays.
 */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { fsyncSync, readdirSync, readFileSync, readSync, writeSync } from "node:fs";
import { open, readFile, rm, writeFile } from "node:fs/promises";
import { attempt, run } from "../support/clients.ts";
import { assertFileIs, loopDevice, MiB, patternImage } from "../support/images.ts";
import {
  PATIENCE_MS,
  type RunningDaemon,
  runDaemon,
  sleep,
  startDaemon,
} from "../support/process.ts";
import { mountDirectory, mountDisk, mountsUnder, nodeArguments } from "./fuse-scene.ts";

setDefaultTimeout(180_000);

const BYTES = MiB;

async function waitUntil(holds: () => boolean, what: string): Promise<void> {
  for (const deadline = Date.now() + PATIENCE_MS; !holds(); await sleep(10)) {
    if (Date.now() > deadline) throw new Error(`it does not come to ${what}`);
  }
}

function add(running: RunningDaemon, id: string, mountpoint: string): Promise<unknown> {
  const type = { type: "fuse", id, "node-name": "disk" };
  return running.qmp.execute("block-export-add", { ...type, mountpoint, writable: true });
}

async function remove(running: RunningDaemon, id: string): Promise<void> {
  await running.qmp.execute("block-export-del", { id, mode: "hard" });
  await running.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === id);
}

async function refusal(promise: Promise<unknown>): Promise<string> {
  return await promise.then(
    () => "accepted",
    (error: Error) => error.message,
  );
}

/** The names of the exports. */
async function listed(running: RunningDaemon): Promise<string[]> {
  const exports = await running.qmp.execute<{ id: string }[]>("query-block-exports");
  return exports.map(({ id }) => id);
}

describe("an export", () => {
  test("comes and goes hundreds of times under load, and leaves nothing", async () => {
    await using disk = await mountDisk({ bytes: BYTES });
    const paths = [1, 2, 3, 4].map((n) => disk.directory.file(`place${n}`));
    for (const path of paths) await writeFile(path, "below");
    // Everything that is made once is there before the descriptors are counted.
    await add(disk, "first", paths[0] as string);
    await run("dd", [`if=${paths[0]}`, "of=/dev/null", "bs=64k"]);
    await remove(disk, "first");
    // But threads that wait for file systems, with two each, which load brings about.
    const most = disk.daemon.fdCount() + 6;
    let isOver = false;
    let reads = 0;
    const readers = paths.map(async (path) => {
      while (!isOver) {
        const { code } = await attempt("dd", [`if=${path}`, "of=/dev/null", "bs=4k"]);
        if (code === 0) reads++;
      }
    });
    try {
      for (let round = 0; round < 60; round++) {
        const ids = paths.map((_, i) => `f${i}-${round}`);
        await Promise.all(ids.map((id, i) => add(disk, id, paths[i] as string)));
        expect(mountsUnder(disk.directory.path)).toHaveLength(5);
        await Promise.all(ids.map((id) => remove(disk, id)));
        expect(mountsUnder(disk.directory.path)).toEqual([disk.mountpoint]);
      }
    } finally {
      isOver = true;
      await Promise.all(readers);
    }
    expect(reads).toBeGreaterThan(0);
    for (const path of paths) expect(await readFile(path, "utf8")).toBe("below");
    await waitUntil(() => disk.daemon.fdCount() <= most, `${most} descriptors`);
    const { pid } = disk.daemon;
    const processes = readdirSync(`/proc/${pid}/task`).map((thread) =>
      readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8"),
    );
    expect(processes.join("")).toBe("");
    await assertFileIs(disk.mountpoint, disk.content);
  });

  for (const filtered of [false, true]) {
    test(`that is busy goes nevertheless, ${filtered ? "filtered" : "plain"}`, async () => {
      await using disk = await mountDisk({ bytes: BYTES, filtered });
      const file = await open(disk.mountpoint, "r+");
      try {
        await file.write("before", 0);
        await remove(disk, "f0");
        expect(mountsUnder(disk.directory.path)).toEqual([]);
        // The kernel itself has written the file of a plain one until then.
        const code = filtered ? "ENOTCONN" : "EIO";
        const { fd } = file;
        for (const late of [
          () => writeSync(fd, "late", 8192),
          () => readSync(fd, Buffer.alloc(512)),
          () => fsyncSync(fd),
        ]) {
          expect(late).toThrow(code);
        }
        await add(disk, "f0", disk.mountpoint);
        disk.content.write("before");
        await assertFileIs(disk.mountpoint, disk.content);
      } finally {
        await file.close();
      }
      await assertFileIs(disk.mountpoint, disk.content);
    });
  }

  test("goes while a loop device is over it, and while programs write", async () => {
    await using disk = await mountDisk({ bytes: 16 * BYTES });
    const writers = [0, 1].map((n) => {
      const target = [`of=${disk.mountpoint}`, "bs=64k", `seek=${n * 128}`, "conv=notrunc"];
      return attempt("dd", ["if=/dev/zero", ...target, "count=128"]);
    });
    await using loop = await loopDevice(disk.mountpoint);
    await remove(disk, "f0");
    expect(await listed(disk)).toEqual([]);
    await Promise.all(writers);
    expect((await attempt("dd", [`if=${loop.device}`, "of=/dev/null", "bs=1M"])).code).toBe(1);
  });

  test("can be over its own image", async () => {
    await using directory = await mountDirectory();
    const image = directory.file("disk.raw");
    const content = await patternImage(image, BYTES);
    const options = `type=fuse,id=f0,node-name=disk,mountpoint=${image},writable=on`;
    const args = [...nodeArguments(image), "--export", options];
    {
      await using running = await startDaemon(directory.path, args);
      expect(mountsUnder(directory.path)).toEqual([image]);
      await assertFileIs(image, content);
      content.write("changed", 5000);
      const change = ["bs=1", "seek=5000", "conv=notrunc"];
      await run("dd", [`of=${image}`, ...change], { input: "changed" });
      expect(running.daemon.exit).toBe(undefined);
    }
    expect(mountsUnder(directory.path)).toEqual([]);
    await assertFileIs(image, content);
  });

  test("that others unmount goes away, and its place is free", async () => {
    await using disk = await mountDisk({ bytes: BYTES });
    await run("umount", [disk.mountpoint]);
    await disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "f0");
    expect(await listed(disk)).toEqual([]);
    await add(disk, "f0", disk.mountpoint);
    await assertFileIs(disk.mountpoint, disk.content);
  });

  test("is refused where it cannot be", async () => {
    await using disk = await mountDisk({ bytes: BYTES });
    const { directory, mountpoint } = disk;
    const missing = directory.file("missing");
    const refusals = {
      [missing]: `Failed to stat '${missing}': No such file or directory`,
      [directory.path]: `'${directory.path}' is not a regular file`,
      [mountpoint]: `There already is a FUSE export on '${mountpoint}'`,
    };
    for (const [path, words] of Object.entries(refusals)) {
      expect(await refusal(add(disk, "f1", path))).toBe(words);
    }
    expect(await listed(disk)).toEqual(["f0"]);
    await assertFileIs(mountpoint, disk.content);
  });
});

describe("a daemon that ends", () => {
  for (const how of ["SIGTERM", "SIGINT", "SIGHUP", "quit"] as const) {
    test(`by ${how} takes its mounts along, busy or not`, async () => {
      await using disk = await mountDisk({ bytes: BYTES });
      const other = disk.directory.file("other");
      await writeFile(other, "below");
      await add(disk, "f1", other);
      const file = await open(other, "r+");
      try {
        if (how === "quit") await disk.qmp.execute("quit");
        else disk.daemon.signal(how);
        expect(await disk.daemon.exitSoon()).toBe(0);
        expect(mountsUnder(disk.directory.path)).toEqual([]);
        expect(await readFile(other, "utf8")).toBe("below");
        expect(await refusal(file.write("late", 8192))).toContain("EIO");
        await assertFileIs(disk.image, disk.content);
      } finally {
        await file.close();
      }
    });
  }

  test("while its node holds requests back ends soon, and so do they", async () => {
    await using disk = await mountDisk({ bytes: BYTES, filtered: true });
    await disk.qmp.execute("qom-set", {
      path: "no-limits",
      property: "limits",
      value: { "iops-total": 1 },
    });
    const user = await open(disk.mountpoint, "r+");
    const writers = [0, 1, 2, 3].map((n) => {
      const target = [`of=${disk.mountpoint}`, "bs=4k", `seek=${n * 16}`, "conv=notrunc"];
      return attempt("dd", ["if=/dev/zero", ...target, "count=16", "oflag=direct"]);
    });
    await sleep(300);
    const safely = disk.qmp.execute("block-export-del", { id: "f0" });
    expect(await refusal(safely)).toBe("export 'f0' still in use");
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitSoon()).toBe(0);
    expect(mountsUnder(disk.directory.path)).toEqual([]);
    for (const { code } of await Promise.all(writers)) expect([0, 1]).toContain(code);
    await user.close();
  });

  test("by SIGKILL leaves a dead mount, which the next one on the same place clears", async () => {
    await using directory = await mountDirectory();
    const image = directory.file("disk.raw");
    const content = await patternImage(image, BYTES);
    const mountpoint = directory.file("disk");
    await writeFile(mountpoint, "below");
    const options = `type=fuse,id=f0,node-name=disk,mountpoint=${mountpoint},writable=on`;
    const args = [...nodeArguments(image), "--export", options];
    for (let round = 0; round < 3; round++) {
      await using running = await startDaemon(directory.path, args);
      await assertFileIs(mountpoint, content);
      expect(mountsUnder(directory.path)).toEqual([mountpoint]);
      running.daemon.expectedExit = "SIGKILL";
      const write = attempt("dd", ["if=/dev/zero", `of=${mountpoint}`, "bs=4k", "conv=notrunc"]);
      await sleep(20 * round);
      running.daemon.signal("SIGKILL");
      await running.daemon.exited;
      await write;
      content.set(await readFile(image));
      expect(mountsUnder(directory.path)).toEqual([mountpoint]);
      await rm(running.pidfile, { force: true });
    }
    {
      await using running = await startDaemon(directory.path, args);
      await assertFileIs(mountpoint, content);
      expect(running.daemon.exit).toBe(undefined);
    }
    expect(mountsUnder(directory.path)).toEqual([]);
    expect(await readFile(mountpoint, "utf8")).toBe("below");
  });

  test("because its last option is wrong has unmounted what it mounted", async () => {
    await using directory = await mountDirectory();
    const image = directory.file("disk.raw");
    await patternImage(image, BYTES);
    const mountpoint = directory.file("disk");
    await writeFile(mountpoint, "below");
    const options = `type=fuse,id=f0,node-name=disk,mountpoint=${mountpoint}`;
    const args = [...nodeArguments(image), "--export", options];
    const { exit, stderr } = await runDaemon([...args, "--blockdev", "driver=none"]);
    expect(exit).toBe(1);
    expect(stderr).toContain("driver");
    expect(mountsUnder(directory.path)).toEqual([]);
  });
});
