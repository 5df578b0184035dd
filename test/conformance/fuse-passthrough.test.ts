/** FUSE exports whose files the kernel reads and writes itself; needs root and Linux 6.9. */

import { afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { attempt, run } from "../support/clients.ts";
import { MiB, pattern, patternImage, temporaryDirectory } from "../support/images.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";

setDefaultTimeout(180_000);

const { O_RDONLY, O_WRONLY, O_RDWR, O_APPEND, O_TRUNC } = constants;
const BYTES = 4 * MiB;
const IN_USE = "Node 'disk' is in use by programs that the kernel lets read and write directly";
const USED_WRITE_BYTE = 101;

interface Scene extends RunningDaemon {
  readonly image: string;
  readonly mountpoint: string;
  readonly content: Buffer;
}

const opened = new Set<number>();
afterEach(() => {
  for (const fd of [...opened]) close(fd);
});

function open(path: string, flags: number): number {
  const fd = openSync(path, flags);
  opened.add(fd);
  return fd;
}

/** Returns the code of its error. */
function close(fd: number): string {
  opened.delete(fd);
  return codeOf(() => closeSync(fd));
}

function codeOf(action: () => unknown): string {
  try {
    action();
    return "";
  } catch (error) {
    return String((error as { code?: string }).code);
  }
}

function read(fd: number, offset: number, bytes: number): Buffer {
  const buffer = Buffer.alloc(bytes);
  return buffer.subarray(0, readSync(fd, buffer, 0, bytes, offset));
}

const write = (fd: number, data: Buffer, offset: number) =>
  writeSync(fd, data, 0, data.length, offset);

interface ServeOptions {
  readonly raw?: string;
  readonly file?: string;
  readonly export?: string;
}

async function serve(options: ServeOptions = {}): Promise<Scene> {
  await using made = new AsyncDisposableStack();
  const directory = made.use(await temporaryDirectory());
  const image = directory.file("disk.raw");
  const mountpoint = directory.file("mounted");
  const content = await patternImage(image, BYTES);
  writeFileSync(mountpoint, "");
  // One that was killed leaves it.
  made.defer(async () => void (await attempt("umount", ["-l", mountpoint])));
  const { raw = "", file = "", export: more = ",writable=on" } = options;
  const running = made.use(
    await startDaemon(directory.path, [
      "--blockdev",
      `driver=file,node-name=disk-file,filename=${image}${file}`,
      "--blockdev",
      `driver=raw,node-name=disk,file=disk-file${raw}`,
      "--export",
      `type=fuse,id=e0,node-name=disk,mountpoint=${mountpoint}${more}`,
    ]),
  );
  const all = made.move();
  const dispose = () => all[Symbol.asyncDispose]();
  return { ...running, image, mountpoint, content, [Symbol.asyncDispose]: dispose };
}

/** Operations on the node that the daemon knows of. */
async function countsOf({
  qmp,
}: Scene): Promise<{ reads: number; writes: number; flushes: number }> {
  const all = await qmp.execute<Record<string, Record<string, number>>[]>("query-blockstats", {
    "query-nodes": true,
  });
  const { stats } = all.find((one) => String(one["node-name"]) === "disk")!;
  return {
    reads: stats!.rd_operations!,
    writes: stats!.wr_operations!,
    flushes: stats!.flush_operations!,
  };
}

/** Whether anybody holds the lock of those who write. */
function isLockedByWriter(image: string): boolean {
  const inode = String(statSync(image).ino);
  const lines = readFileSync("/proc/locks", "utf8").split("\n");
  return lines.some((line) => {
    const [, kind, , , , file, from, to] = line.trim().split(/\s+/);
    if (kind !== "OFDLCK" || file?.split(":")[2] !== inode) return false;
    return Number(from) <= USED_WRITE_BYTE && Number(to) >= USED_WRITE_BYTE;
  });
}

async function refused(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => "no error",
    (error: Error) => error.message,
  );
}

describe("a plain image", () => {
  test("is read and written past the daemon, and flushed by it", async () => {
    await using scene = await serve();
    const fd = open(scene.mountpoint, O_RDWR);
    expect(read(fd, 4096, MiB).equals(scene.content.subarray(4096, 4096 + MiB))).toBe(true);
    const data = pattern(8192, 7);
    expect(write(fd, data, 12_345)).toBe(8192);
    expect(await countsOf(scene)).toEqual({ reads: 0, writes: 0, flushes: 0 });
    fsyncSync(fd);
    expect((await countsOf(scene)).flushes).toBe(1);
    expect(read(fd, 12_345, 8192).equals(data)).toBe(true);
    expect(close(fd)).toBe("");
    data.copy(scene.content, 12_345);
    expect(readFileSync(scene.image).equals(scene.content)).toBe(true);
  });

  test("is the same for all who have it open, whatever they may do", async () => {
    await using scene = await serve();
    const direct = open(scene.mountpoint, O_RDONLY);
    const both = open(scene.mountpoint, O_RDWR);
    const ours = open(scene.mountpoint, O_WRONLY);
    for (const [index, fd] of [both, ours].entries()) {
      const data = pattern(4096, 20 + index);
      write(fd, data, index * MiB);
      for (const reader of [direct, both]) {
        expect(read(reader, index * MiB, 4096).equals(data)).toBe(true);
      }
    }
    expect(await countsOf(scene)).toEqual({ reads: 0, writes: 1, flushes: 0 });
    expect([direct, both, ours].map(close)).toEqual(["", "", ""]);
  });

  test("is not written beyond its end by who writes until it is full", async () => {
    await using scene = await serve();
    for (const flags of [O_WRONLY, O_WRONLY | O_TRUNC, O_RDWR | O_APPEND, O_RDWR | O_TRUNC]) {
      const fd = open(scene.mountpoint, flags);
      expect(codeOf(() => write(fd, Buffer.alloc(4096), BYTES))).toBe("");
      expect(fstatSync(fd).size).toBe(BYTES);
      expect(close(fd)).toBe("");
    }
    expect(statSync(scene.image).size).toBe(BYTES);
    const data = pattern(MiB, 3);
    const fd = open(scene.mountpoint, O_WRONLY);
    expect(write(fd, data, BYTES - 4096)).toBe(4096);
    expect(close(fd)).toBe("");
    expect(statSync(scene.image).size).toBe(BYTES);
  });

  test("tells who wrote beyond its end nevertheless, once", async () => {
    await using scene = await serve();
    const guilty = open(scene.mountpoint, O_RDWR);
    const reader = open(scene.mountpoint, O_RDONLY);
    write(guilty, pattern(4096, 5), BYTES);
    expect(codeOf(() => fsyncSync(guilty))).toBe("ENOSPC");
    expect([close(guilty), close(reader)]).toEqual(["", ""]);
    const second = open(scene.mountpoint, O_RDWR);
    expect(fstatSync(second).size).toBe(BYTES);
    write(second, pattern(4096, 6), 0);
    expect(close(second)).toBe("");
    // What was written is not ours to take away.
    expect(statSync(scene.image).size).toBe(BYTES + 4096);
    while (!scene.daemon.stderr.includes("written beyond the end of the disk")) await sleep(5);
  });
});

describe("while programs have it open", () => {
  test("nothing comes in between, and everything may afterwards", async () => {
    await using scene = await serve();
    const { qmp, image } = scene;
    const fd = open(scene.mountpoint, O_RDWR);
    const threshold = (bytes: number) =>
      qmp.execute("block-set-write-threshold", { "node-name": "disk", "write-threshold": bytes });
    const reopen = (offset: number) =>
      qmp.execute("blockdev-reopen", {
        options: [{ driver: "raw", "node-name": "disk", file: "disk-file", offset }],
      });
    expect(await refused(threshold(4096))).toBe(IN_USE);
    expect(await refused(reopen(512))).toBe(IN_USE);
    expect(await refused(reopen(0))).toBe("no error");
    write(fd, pattern(512, 1), 0);
    expect(readFileSync(image).subarray(0, 512).equals(pattern(512, 1))).toBe(true);
    expect(close(fd)).toBe("");
    expect(await refused(threshold(4096))).toBe("no error");
    const watched = open(scene.mountpoint, O_RDWR);
    write(watched, pattern(512, 2), 8192);
    expect((await countsOf(scene)).writes).toBe(1);
    await qmp.event("BLOCK_WRITE_THRESHOLD");
    expect(close(watched)).toBe("");
    // Nobody watches any more.
    const again = open(scene.mountpoint, O_RDWR);
    write(again, pattern(512, 3), 8192);
    expect((await countsOf(scene)).writes).toBe(1);
  });

  test("the disk may move to another thread, which knows of them", async () => {
    await using scene = await serve();
    const { qmp, image, mountpoint } = scene;
    const fds = [O_RDONLY, O_RDWR, O_WRONLY].map((flags) => open(mountpoint, flags));
    await qmp.execute("object-add", { "qom-type": "iothread", id: "io0" });
    const place = { "node-name": "disk", iothread: "io0", force: true };
    await qmp.execute("x-blockdev-set-iothread", place);
    write(fds[1]!, pattern(4096, 1), 0);
    write(fds[2]!, pattern(4096, 2), 4096);
    fsyncSync(fds[1]!);
    const expected = Buffer.concat([pattern(4096, 1), pattern(4096, 2)]);
    expect(read(fds[0]!, 0, 8192).equals(expected)).toBe(true);
    expect(readFileSync(image).subarray(0, 8192).equals(expected)).toBe(true);
    const threshold = { "node-name": "disk", "write-threshold": 4096 };
    expect(await refused(qmp.execute("block-set-write-threshold", threshold))).toBe(IN_USE);
    expect(fds.map(close)).toEqual(["", "", ""]);
    expect(await refused(qmp.execute("block-set-write-threshold", threshold))).toBe("no error");
  });

  test("they lose it with the export, and the image stays locked", async () => {
    await using scene = await serve();
    const { qmp, image, mountpoint, content } = scene;
    const fd = open(mountpoint, O_RDWR);
    await qmp.execute("block-export-del", { id: "e0", mode: "hard" });
    await qmp.event("BLOCK_EXPORT_DELETED");
    expect(statSync(mountpoint).size).toBe(0);
    await qmp.execute("blockdev-del", { "node-name": "disk" });
    await qmp.execute("blockdev-del", { "node-name": "disk-file" });
    expect(codeOf(() => write(fd, pattern(4096, 4), 4096))).toBe("EIO");
    expect(codeOf(() => read(fd, 0, 512))).toBe("EIO");
    expect(readFileSync(image).equals(content)).toBe(true);
    // For mappings, which can't be taken away.
    expect(isLockedByWriter(image)).toBe(true);
    close(fd);
    while (isLockedByWriter(image)) await sleep(5);
  });

  test("other programs are kept from the image, even when the daemon was killed", async () => {
    await using scene = await serve();
    const { daemon, image, mountpoint } = scene;
    const fd = open(mountpoint, O_RDWR);
    daemon.expectedExit = "SIGKILL";
    daemon.kill();
    await daemon.exitSoon();
    write(fd, pattern(4096, 9), 0);
    expect(isLockedByWriter(image)).toBe(true);
    close(fd);
    await run("umount", ["-l", mountpoint]);
    expect(isLockedByWriter(image)).toBe(false);
  });
});

describe("goes through the daemon", () => {
  const cases: [what: string, options: ServeOptions][] = [
    ["a window of an image", { raw: `,size=${BYTES}` }],
    ["an image that is written around the page cache", { file: ",cache.direct=on" }],
    ["a node that looks for zeroes", { raw: ",detect-zeroes=on" }],
    ["an export that writes through", { export: ",writable=on,writethrough=on" }],
    ["whoever may make the disk longer", { export: ",writable=on,growable=on" }],
  ];
  for (const [what, options] of cases) {
    test(what, async () => {
      await using scene = await serve(options);
      const fd = open(scene.mountpoint, O_RDWR);
      write(fd, pattern(4096, 1), 4096);
      expect((await countsOf(scene)).writes).toBe(1);
      expect(close(fd)).toBe("");
    });
  }
});

test("a read-only export is read past the daemon, and written by nobody", async () => {
  await using scene = await serve({ export: "" });
  const fd = open(scene.mountpoint, O_RDONLY);
  expect(read(fd, 0, MiB).equals(scene.content.subarray(0, MiB))).toBe(true);
  expect((await countsOf(scene)).reads).toBe(0);
  expect(codeOf(() => open(scene.mountpoint, O_RDWR))).toBe("EROFS");
  expect(close(fd)).toBe("");
});
