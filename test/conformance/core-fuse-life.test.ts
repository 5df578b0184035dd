/**
 * FUSE exports from outside: what their options do, where they are mounted, and that no mount
 * outlives its export.
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../../src/abi/linux.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { type Mount, parseMountinfo } from "../../src/runtime/mountinfo.ts";
import { run } from "../support/clients.ts";
import { driver } from "../support/driver.ts";
import { MiB, patternImage, temporaryDirectory } from "../support/images.ts";
import {
  PATIENCE_MS,
  type RunningDaemon,
  runDaemon,
  sleep,
  startDaemon,
} from "../support/process.ts";
import type { Qmp } from "../support/qmp.ts";
import { inOpenNamespace } from "./fuse-scene.ts";

setDefaultTimeout(180_000);

const BYTES = 2 * MiB;
const isRoot = process.getuid!() === 0;
const linux = new Linux(driver.ffi, driver.arch);

interface Place extends AsyncDisposable {
  readonly path: string;
  readonly image: string;
  readonly content: Buffer;
  readonly mountpoint: string;
  file(name: string): string;
}

/** All that were made. */
const places: string[] = [];

async function makePlace(): Promise<Place> {
  const directory = await temporaryDirectory();
  // Mounts are listed by their real paths.
  const path = fs.realpathSync(directory.path);
  places.push(path);
  const file = (name: string) => join(path, name);
  const content = await patternImage(file("disk.raw"), BYTES);
  fs.writeFileSync(file("mnt"), "below");
  return {
    ...{ path, content, image: file("disk.raw"), mountpoint: file("mnt"), file },
    async [Symbol.asyncDispose]() {
      for (const mount of mountsIn(path)) await unmountBy(mount.path, true).catch(() => {});
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** Somebody else unmounts it. */
async function unmountBy(path: string, lazily = false): Promise<void> {
  if (isRoot) await run("umount", [...(lazily ? ["-l"] : []), "--", path]);
  else await run("fusermount3", ["-u", ...(lazily ? ["-z"] : []), "--", path]);
}

function mountsIn(directory: string, pid: number | "self" = "self"): Mount[] {
  const text = fs.readFileSync(`/proc/${pid}/mountinfo`, "utf8");
  return parseMountinfo(text).filter(({ path }) => path.startsWith(`${directory}/`));
}

const blockdevs = (place: Place, more: readonly string[] = []) => [
  ...["--object", "iothread,id=io0", "--object", "iothread,id=io1"],
  ...["--blockdev", `file,node-name=disk,filename=${place.image}`],
  ...more,
];
const start = (place: Place, more: readonly string[] = []) =>
  startDaemon(place.path, blockdevs(place, more));

function add(qmp: Qmp, mountpoint: string, more: Record<string, unknown> = {}): Promise<unknown> {
  const common = { type: "fuse", id: "e", "node-name": "disk", mountpoint };
  return qmp.execute("block-export-add", { ...common, writable: true, ...more });
}

async function remove(qmp: Qmp, id = "e"): Promise<void> {
  await qmp.execute("block-export-del", { id, mode: "hard" });
  await qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === id);
}

async function errorOf(promise: Promise<unknown>): Promise<string> {
  return await promise.then(
    () => "no error",
    (error: Error & { code?: string }) => error.code ?? error.message,
  );
}

/** The code of what `action` throws. */
function codeOf(action: () => unknown): string {
  try {
    action();
    return "no error";
  } catch (error) {
    return (error as { code: string }).code;
  }
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error("that did not come true");
    await sleep(5);
  }
}

afterAll(() => {
  const left = places.flatMap((place) => mountsIn(place));
  expect(left.map(({ path }) => path)).toEqual([]);
});

describe("fuse: options", () => {
  test("mounts as qemu-storage-daemon does", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    const user = [`user_id=${process.getuid!()}`, `group_id=${process.getgid!()}`];
    const expected = (access: string, others: boolean) => [
      ...[access, ...user, "default_permissions"],
      ...(others ? ["allow_other"] : []),
      "max_read=1048576",
    ];
    await add(qmp, place.mountpoint, { "allow-other": "off" });
    const [mount] = mountsIn(place.path);
    expect(mount).toMatchObject({ path: place.mountpoint, type: "fuse", source: "/dev/fuse" });
    expect(mount?.options).toEqual(expected("rw", false));
    const line = fs
      .readFileSync("/proc/self/mounts", "utf8")
      .split("\n")
      .find((each) => each.includes(place.mountpoint));
    expect(line).toContain(" rw,nosuid,nodev,noatime,");
    expect(fs.readFileSync(place.mountpoint).equals(place.content)).toBe(true);
    await remove(qmp);
    expect(fs.readFileSync(place.mountpoint, "utf8")).toBe("below");
    await add(qmp, place.mountpoint, { writable: false });
    expect(mountsIn(place.path)[0]?.options).toEqual(expected("ro", isRoot));
    expect(codeOf(() => fs.openSync(place.mountpoint, "r+"))).toBe("EROFS");
    await remove(qmp);
    expect(mountsIn(place.path)).toEqual([]);
  });

  test("checks in qemu-storage-daemon's order, in its words", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    fs.mkdirSync(place.file("dir"));
    const cases: readonly [Record<string, unknown>, string][] = [
      [{ mountpoint: 5 }, "Invalid parameter type for 'mountpoint', expected: string"],
      [{ "allow-other": "maybe" }, "Parameter 'allow-other' does not accept value 'maybe'"],
      [{ growable: "on" }, "Invalid parameter type for 'growable', expected: boolean"],
      [{ mountpoint: "" }, "Failed to stat '': No such file or directory"],
      [{ mountpoint: "/no/x" }, "Failed to stat '/no/x': No such file or directory"],
      [{ mountpoint: place.file("dir") }, `'${place.file("dir")}' is not a regular file`],
      [{ mountpoint: "/dev/null" }, "'/dev/null' is not a regular file"],
      [{ "allow-inactive": true }, "Export type does not support inactive exports"],
      [{ iothread: [] }, "The set of I/O threads must not be empty"],
      [
        { iothread: ["io0"], "fixed-iothread": true },
        "Cannot use fixed-iothread for a multi-threaded export",
      ],
      [{ iothread: ["io0", "none"] }, 'iothread "none" not found'],
    ];
    for (const [more, message] of cases) {
      expect(await errorOf(add(qmp, place.mountpoint, more))).toBe(message);
    }
    await qmp
      .execute("block-export-add", { type: "nbd", id: "n", "node-name": "disk" })
      .catch(() => {});
    await add(qmp, place.mountpoint, { iothread: ["io0", "io1"] });
    const twice = `There already is a FUSE export on '${place.mountpoint}'`;
    expect(await errorOf(add(qmp, place.mountpoint, { id: "f" }))).toBe(twice);
    // Of QSD this is the end.
    fs.symlinkSync(place.mountpoint, place.file("link"));
    const other = `There already is a FUSE export on '${place.file("link")}'`;
    expect(await errorOf(add(qmp, place.file("link"), { id: "f" }))).toBe(other);
    await remove(qmp);
  });

  test("takes odd paths", async () => {
    await using place = await makePlace();
    await using daemon = await startDaemon(place.path, blockdevs(place), { cwd: place.path });
    const { qmp } = daemon;
    const names = ["a b\tc", "comma,=", "back\\slash", "line\nfeed", "größe", "-o", "#"];
    for (const name of names) {
      fs.writeFileSync(place.file(name), "");
      await add(qmp, name);
      expect(mountsIn(place.path).map(({ path }) => path)).toEqual([place.file(name)]);
      expect(fs.statSync(place.file(name)).size).toBe(BYTES);
      await remove(qmp);
      expect(mountsIn(place.path)).toEqual([]);
    }
    fs.symlinkSync("mnt", place.file("link"));
    await add(qmp, place.file("link"));
    expect(mountsIn(place.path).map(({ path }) => path)).toEqual([place.mountpoint]);
    fs.mkdirSync(place.file("dir"));
    await remove(qmp);
  });

  test("serves over the image's own path", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    await add(qmp, place.image);
    const fd = fs.openSync(place.image, "r+");
    fs.writeSync(fd, Buffer.from("changed"), 0, 7, 4096);
    fs.closeSync(fd);
    const again = { driver: "file", "node-name": "again", filename: place.image };
    expect(await errorOf(qmp.execute("blockdev-add", again))).toBe(
      `Could not open '${place.image}': Resource deadlock avoided`,
    );
    const reopened = { driver: "file", "node-name": "disk", filename: place.image };
    const options = [{ ...reopened, "detect-zeroes": "on" }];
    await qmp.execute("blockdev-reopen", { options });
    const move = { "node-name": "disk", iothread: "io0", force: true };
    await qmp.execute("x-blockdev-set-iothread", move);
    expect(fs.readFileSync(place.image).subarray(4096, 4103).toString()).toBe("changed");
    await remove(qmp);
    expect(fs.readFileSync(place.image).subarray(4096, 4103).toString()).toBe("changed");
  });
});

describe("fuse: the end of an export", () => {
  test("takes a file away from who has it open", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    // Not past the daemon: that can't be taken away.
    await add(qmp, place.mountpoint, { growable: true });
    const fd = fs.openSync(place.mountpoint, "r+");
    fs.writeSync(fd, "kept", 0);
    await remove(qmp);
    expect(mountsIn(place.path)).toEqual([]);
    expect(codeOf(() => fs.writeSync(fd, "lost", 0))).toBe("ENOTCONN");
    expect(codeOf(() => fs.fsyncSync(fd))).toBe("ENOTCONN");
    codeOf(() => fs.closeSync(fd));
    expect(fs.readFileSync(place.image).subarray(0, 4).toString()).toBe("kept");
    await add(qmp, place.mountpoint);
    await remove(qmp);
  });

  test("has written back what was written to mappings", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    await add(qmp, place.mountpoint, { growable: true });
    const fd = fs.openSync(place.mountpoint, "r+");
    const address = linux.mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    expect(address).toBeGreaterThan(0);
    new Uint8Array(driver.ffi.view(address, BYTES)).fill(7, 8192, 12_288);
    await remove(qmp);
    linux.munmap(address, BYTES);
    codeOf(() => fs.closeSync(fd));
    const written = fs.readFileSync(place.image).subarray(8192, 12_288);
    expect(written.every((byte) => byte === 7)).toBe(true);
  });

  test("comes when somebody else unmounts it", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    for (let i = 0; i < 3; i++) {
      await add(qmp, place.mountpoint);
      await unmountBy(place.mountpoint);
      await qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e");
      expect(await qmp.execute<unknown[]>("query-block-exports")).toEqual([]);
    }
    await qmp.execute("blockdev-del", { "node-name": "disk" });
  });

  test("is no business of who has mounted something above since", async () => {
    if (!isRoot) return;
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    await add(qmp, place.mountpoint);
    fs.writeFileSync(place.file("other"), "other");
    await run("mount", ["--bind", place.file("other"), place.mountpoint]);
    await remove(qmp);
    expect(fs.readFileSync(place.mountpoint, "utf8")).toBe("other");
    await unmountBy(place.mountpoint);
    // What is below is dead, and the next one's to clean up.
    await add(qmp, place.mountpoint);
    expect(fs.statSync(place.mountpoint).size).toBe(BYTES);
    await remove(qmp);
    expect(fs.readFileSync(place.mountpoint, "utf8")).toBe("below");
  });

  test("leaves nothing behind, however often", async () => {
    await using place = await makePlace();
    await using daemon = await start(place);
    const { qmp } = daemon;
    fs.writeFileSync(place.file("second"), "");
    const both = async () => {
      await add(qmp, place.mountpoint);
      await add(qmp, place.file("second"), { id: "f", iothread: "io0" });
      const reads = [place.mountpoint, place.file("second")].map((path) =>
        fs.promises.readFile(path).catch(() => null),
      );
      await remove(qmp);
      await remove(qmp, "f");
      await Promise.all(reads);
    };
    await both();
    const before = daemon.daemon.fdCount();
    for (let i = 0; i < 50; i++) await both();
    expect(mountsIn(place.path)).toEqual([]);
    await until(() => daemon.daemon.fdCount() <= before);
  });
});

describe("fuse: the end of the daemon", () => {
  const ends: readonly [string, (daemon: RunningDaemon) => Promise<void>][] = [
    ["quit", async ({ qmp }) => void (await qmp.execute("quit"))],
    ["SIGTERM", async ({ daemon }) => daemon.signal("SIGTERM")],
    ["SIGINT", async ({ daemon }) => daemon.signal("SIGINT")],
  ];
  for (const [name, end] of ends) {
    test(`${name} unmounts everything, files that are open and mapped included`, async () => {
      await using place = await makePlace();
      fs.writeFileSync(place.file("second"), "");
      const daemon = await start(place);
      await add(daemon.qmp, place.mountpoint, { growable: true });
      await add(daemon.qmp, place.file("second"), { id: "f", iothread: "io0" });
      const fd = fs.openSync(place.mountpoint, "r+");
      const address = linux.mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      new Uint8Array(driver.ffi.view(address, BYTES)).fill(9, 0, 4096);
      await end(daemon);
      expect(await daemon.daemon.exitSoon()).toBe(0);
      daemon.qmp.close();
      expect(mountsIn(place.path)).toEqual([]);
      linux.munmap(address, BYTES);
      codeOf(() => fs.closeSync(fd));
      expect(fs.readFileSync(place.image)[4095]).toBe(9);
    });
  }

  test("an option that fails unmounts what came before it", async () => {
    await using place = await makePlace();
    const fuse = `type=fuse,id=e,node-name=disk,mountpoint=${place.mountpoint}`;
    const args = [...blockdevs(place), "--export", fuse, "--export", "type=nope"];
    const { exit, stderr } = await runDaemon(args);
    expect([exit, stderr]).toEqual([
      1,
      "outport: --export type=nope: Parameter 'type' does not accept value 'nope'\n",
    ]);
    expect(mountsIn(place.path)).toEqual([]);
  });

  test("what a killed daemon leaves, the next one removes", async () => {
    await using place = await makePlace();
    const fuse = `fuse,id=e,node-name=disk,mountpoint=${place.mountpoint},writable=on`;
    for (let i = 0; i < 3; i++) {
      const killed = await start(place, ["--export", fuse]);
      killed.qmp.close();
      killed.daemon.kill();
      await killed.daemon.exited;
      fs.rmSync(killed.pidfile);
      // The latter for requests that were under way when the kernel noticed.
      const refusals = ["ENOTCONN", "ECONNABORTED"];
      expect(refusals).toContain(codeOf(() => fs.statSync(place.mountpoint)));
    }
    const daemon = await start(place, ["--export", fuse]);
    expect(mountsIn(place.path)).toHaveLength(1);
    await daemon.daemon.said(/removed the dead mount of an earlier export from '.*\/mnt'/);
    await daemon[Symbol.asyncDispose]();
    expect(mountsIn(place.path)).toEqual([]);
  });

  test("a kill in the middle of everything ends it, and sets its clients free", async () => {
    await using place = await makePlace();
    const slow = "null-co,node-name=slow,size=1048576,latency-ns=100000000000";
    const daemon = await start(place, ["--blockdev", slow]);
    await add(daemon.qmp, place.mountpoint, { "node-name": "slow" });
    const reads = [0, 1, 2].map(() =>
      errorOf(run("dd", [`if=${place.mountpoint}`, "of=/dev/null"])),
    );
    await sleep(1000);
    await daemon.qmp.execute("block-export-del", { id: "e", mode: "hard" });
    await sleep(100);
    daemon.qmp.close();
    daemon.daemon.kill();
    expect(await daemon.daemon.exitSoon()).toBe("SIGKILL");
    for (const read of reads) expect(await read).not.toBe("no error");
  });
});

describe("fuse: a disk that does not answer", () => {
  test("keeps neither clients nor a mount when outport leaves", async () => {
    await using place = await makePlace();
    const slow = "null-co,node-name=slow,size=1048576,latency-ns=100000000000";
    const { daemon, qmp } = await start(place, ["--blockdev", slow]);
    await add(qmp, place.mountpoint, { "node-name": "slow" });
    const read = errorOf(run("dd", [`if=${place.mountpoint}`, "of=/dev/null"]));
    await sleep(1500);
    qmp.execute("quit").catch(() => {});
    await daemon.said(/an orderly end takes long/);
    daemon.signal("SIGTERM");
    expect(await daemon.exitSoon()).toBe(1);
    expect(mountsIn(place.path)).toEqual([]);
    expect(await read).not.toBe("no error");
  });
});

describe("fuse: the life of an export", () => {
  test("moves between iothreads under load", async () => {
    await using place = await makePlace();
    // Who reads a plain file directly keeps it where it is.
    const filter = "throttle,node-name=limited,throttle-group=limits,file=disk";
    const nodes = ["--object", "throttle-group,id=limits", "--blockdev", filter];
    await using daemon = await start(place, nodes);
    const { qmp } = daemon;
    await add(qmp, place.mountpoint, { "node-name": "limited" });
    let over = false;
    let rounds = 0;
    const readers = [0, 1].map(async () => {
      while (!over) {
        const content = await fs.promises.readFile(place.mountpoint);
        if (!content.equals(place.content)) throw new Error(`wrong: ${content.length} bytes`);
        rounds++;
      }
    });
    try {
      for (const iothread of ["io0", "io1", null, "io0", null]) {
        const before = rounds;
        const move = { "node-name": "limited", iothread, force: true };
        await qmp.execute("x-blockdev-set-iothread", move);
        await until(() => rounds > before + 2);
      }
    } finally {
      over = true;
    }
    await Promise.all(readers);
    await remove(qmp);
  });

  test("an ordinary user mounts through fusermount3", async () => {
    await using place = await makePlace();
    if (isRoot) {
      fs.chmodSync(place.path, 0o777);
      fs.chmodSync(place.image, 0o666);
      fs.chownSync(place.mountpoint, NOBODY, NOBODY);
    }
    await using daemon = await startDaemon(place.path, blockdevs(place), {
      prefix: isRoot ? asNobody(place) : [],
    });
    const { qmp } = daemon;
    const uid = isRoot ? NOBODY : process.getuid!();
    await add(qmp, place.mountpoint);
    const [mount] = mountsIn(place.path, daemon.daemon.pid);
    expect(mount).toMatchObject({ path: place.mountpoint, type: "fuse", source: "/dev/fuse" });
    expect(mount?.options).toContain(`user_id=${uid}`);
    await remove(qmp);
    expect(mountsIn(place.path, daemon.daemon.pid)).toEqual([]);
    const notOurs = { mountpoint: "/etc/passwd" };
    expect(await errorOf(add(qmp, "/etc/passwd", notOurs))).toBe(
      "Failed to mount FUSE session to export",
    );
    await daemon.daemon.said(/Cannot mount on '\/etc\/passwd': /);
    await add(qmp, place.mountpoint, { "allow-other": "off" });
    await remove(qmp);
  });
});

const NOBODY = 65_534;

function asNobody(place: Place): string[] {
  const ids = ["--reuid", `${NOBODY}`, "--regid", `${NOBODY}`, "--clear-groups"];
  return [...inOpenNamespace(place.file("fuse")), "setpriv", ...ids, "env", "HOME=/tmp"];
}
