import { afterAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import {
  F_GETFL,
  F_UNLCK,
  F_WRLCK,
  O_ACCMODE,
  O_RDWR,
  POSIX_FADV_DONTNEED,
} from "../../../../../src/abi/linux.ts";
import type { OpenContext } from "../../../../../src/block/driver.ts";
import { file } from "../../../../../src/block/drivers/file/index.ts";
import {
  type BlockNode,
  MAPPED,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  REQ_MAY_UNMAP,
  type Resolution,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../../../../src/block/node.ts";
import { EINVAL, EIO } from "../../../../../src/runtime/errno.ts";
import { extentsOf, openContext, Payload } from "../../../../support/block.ts";
import { pattern } from "../../../../support/images.ts";
import { ENGINES, makeReactor, runOn } from "../../../../support/reactor.ts";

const KiB = 1024;
const DATA = STATUS_DATA | STATUS_ALLOCATED;
const HOLE = STATUS_ZERO | STATUS_ALLOCATED;

/** A disk's file system, and one that refuses more: tmpfs. */
const directories = [tmpdir(), "/dev/shm"]
  .filter((parent) => existsSync(parent))
  .map((parent) => mkdtempSync(join(parent, "outport-node-")));
afterAll(() => {
  for (const directory of directories) rmSync(directory, { recursive: true });
});

function linkOf(fd: string): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // The one with which the directory was read.
    return undefined;
  }
}

let images = 0;
function imageIn(directory: string, content: Uint8Array | string): string {
  const path = join(directory, `image${images++}`);
  writeFileSync(path, content);
  return path;
}

/** 1 MiB with data at [0, 64 KiB) and [512 KiB, 576 KiB). */
function sparseIn(directory: string): string {
  const path = imageIn(directory, "");
  truncateSync(path, 1024 * KiB);
  const fd = openSync(path, "r+");
  writeSync(fd, pattern(64 * KiB, 1), 0, 64 * KiB, 0);
  writeSync(fd, pattern(64 * KiB, 2), 0, 64 * KiB, 512 * KiB);
  fsyncSync(fd);
  closeSync(fd);
  return path;
}

const used = PERM_CONSISTENT_READ | PERM_WRITE;
const shared = PERM_ALL & ~PERM_RESIZE;

const places = ENGINES.flatMap((engine) => directories.map((directory) => ({ engine, directory })));
for (const { engine, directory } of places) {
  describe(`file in ${dirname(directory)} on ${engine}`, () => {
    const image = (content: Uint8Array | string) => imageIn(directory, content);
    const reactor = makeReactor(engine);
    const payload = new Payload(reactor, 256 * KiB);
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };

    const run = <Result>(task: () => Promise<Result>) => runOn(reactor, task);
    function open(filename: string, some: Partial<OpenContext> = {}): Promise<BlockNode> {
      const options = { filename, ...some.options };
      return run(() => file.open(openContext(reactor, { ...some, options })));
    }
    async function openMode(node: BlockNode): Promise<number> {
      expect(node.resolve(OP_READ, 0, 512, out)).toBe(MAPPED);
      return reactor.linux.fcntl(out.fd, F_GETFL) & O_ACCMODE;
    }

    test("is the same file after a move, though its name leads elsewhere", async () => {
      const path = image("old");
      const node = await open(path);
      const handedOver = structuredClone(node.handOver!());
      renameSync(path, `${path}.old`);
      writeFileSync(path, "another one");
      const moved = await open(path, { handedOver });
      await run(() => node.close());
      payload.u8.set(Buffer.from("new"));
      expect(await run(() => moved.write(0, 3, payload.address, 0))).toBe(0);
      await run(() => moved.close());
      const contents = [path, `${path}.old`].map((name) => readFileSync(name, "utf8"));
      expect(contents).toEqual(["another one", "new"]);
    });

    test("makes the host forget what it has in memory of a file that others change", async () => {
      const path = image("x");
      const cases: [Partial<OpenContext>, unknown[][]][] = [
        [{}, [[reactor.linux.sys.fadvise64, 0, 0, POSIX_FADV_DONTNEED]]],
        [{ options: { filename: path, "drop-cache": false } }, []],
      ];
      for (const [some, calls] of cases) {
        const node = await open(path, some);
        const called: unknown[][] = [];
        const { call } = reactor.engine;
        reactor.engine.call = (number, [_fd, ...args], token) => {
          called.push([number, ...args]);
          call.call(reactor.engine, number, [_fd!, ...args], token);
        };
        await run(() => node.invalidate!());
        reactor.engine.call = call;
        expect(called).toEqual(calls);
        await run(() => node.close());
      }
    });

    test("maps reads, writes and flushes to the file itself", async () => {
      const node = await open(image("x".repeat(1000)));
      expect(node.bytes).toBe(1024);
      for (const op of [OP_READ, OP_WRITE] as const) {
        expect(node.resolve(op, 512, 256, out)).toBe(MAPPED);
        expect([out.offset, out.bytes]).toEqual([512, 256]);
      }
      expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(MAPPED);
      expect(node.resolve(OP_CACHE, 0, 512, out)).toBe(ZERO);
      expect(node.resolve(OP_DISCARD, 0, 512, out)).toBe(ZERO);
      expect(node.resolve(OP_WRITE_ZEROES, 0, 512, out)).toBe(SLOW);
      await node.close();
    });

    test("has nothing to flush when read-only or told so", async () => {
      const path = image("x".repeat(512));
      for (const some of [{ readOnly: true }, { cacheNoFlush: true }]) {
        const node = await open(path, some);
        expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(ZERO);
        expect(await run(() => node.flush())).toBe(0);
        await node.close();
      }
    });

    test("read() and write() move exactly their range; the missing tail is zeroes", async () => {
      const path = image(pattern(1000, 3));
      const node = await open(path);
      payload.u8.fill(0xee);
      expect(await run(() => node.read(100, 924, payload.address))).toBe(0);
      const expected = Buffer.concat([pattern(1000, 3).subarray(100), Buffer.alloc(24)]);
      expect(Buffer.from(payload.u8.subarray(0, 924)).equals(expected)).toBe(true);
      expect(payload.u8[924]).toBe(0xee);

      payload.u8.set(pattern(300, 4));
      expect(await run(() => node.write(50, 300, payload.address, 0))).toBe(0);
      const after = Buffer.from(pattern(1000, 3));
      after.set(pattern(300, 4), 50);
      expect(readFileSync(path).equals(after)).toBe(true);
      expect(await run(() => node.flush())).toBe(0);
      await node.close();
    });

    test("blockStatus() tells holes from data, and remembers data", async () => {
      const node = await open(sparseIn(directory));
      expect(node.isKnownData(0, 4096)).toBe(false);
      expect(await extentsOf(reactor, node, 0, node.bytes)).toEqual([
        [DATA, 64 * KiB],
        [HOLE, 448 * KiB],
        [DATA, 64 * KiB],
        [HOLE, 448 * KiB],
      ]);
      expect(node.isKnownData(0, 64 * KiB)).toBe(true);
      expect(node.isKnownData(60 * KiB, 8 * KiB)).toBe(false);
      expect(node.isKnownData(512 * KiB, 4096)).toBe(true);
      await node.close();
    });

    test("blockStatus() ends the data where the file ends", async () => {
      const node = await open(image("x".repeat(1000)));
      expect(await extentsOf(reactor, node, 0, 1024)).toEqual([
        [DATA, 1000],
        [HOLE, 24],
      ]);
      await node.close();
    });

    test("a file cut short under it reads as zeroes", async () => {
      const path = image(pattern(64 * KiB));
      const node = await open(path);
      truncateSync(path, 4096);
      payload.u8.fill(0xee);
      expect(await run(() => node.read(0, 8192, payload.address))).toBe(0);
      expect(payload.u8.subarray(4096, 8192).every((byte) => byte === 0)).toBe(true);
      expect((await extentsOf(reactor, node, 0, 64 * KiB)).at(-1)).toEqual([HOLE, 60 * KiB]);
      await node.close();
    });

    test("discard() punches with discard=unmap, and is nothing without", async () => {
      const path = image(pattern(256 * KiB));
      const blocks = statSync(path).blocks;
      const keeping = await open(path);
      expect(await run(() => keeping.discard(0, 128 * KiB))).toBe(0);
      expect(readFileSync(path).equals(pattern(256 * KiB))).toBe(true);
      await keeping.close();

      const node = await open(path, { discardUnmap: true });
      await extentsOf(reactor, node, 0, node.bytes);
      expect(node.resolve(OP_DISCARD, 0, 512, out)).toBe(SLOW);
      expect(await run(() => node.discard(64 * KiB, 128 * KiB))).toBe(0);
      expect(statSync(path).blocks).toBeLessThan(blocks);
      expect(node.isKnownData(0, 64 * KiB)).toBe(true);
      expect(node.isKnownData(64 * KiB, 4096)).toBe(false);
      expect(await extentsOf(reactor, node, 0, node.bytes)).toEqual([
        [DATA, 64 * KiB],
        [HOLE, 128 * KiB],
        [DATA, 64 * KiB],
      ]);
      const after = Buffer.from(pattern(256 * KiB)).fill(0, 64 * KiB, 192 * KiB);
      expect(readFileSync(path).equals(after)).toBe(true);
      await node.close();
    });

    test("writeZeroes() zeroes exactly its range, unmapping only where allowed", async () => {
      for (const discardUnmap of [false, true]) {
        for (const flags of [0, REQ_MAY_UNMAP]) {
          const path = image(pattern(256 * KiB));
          const blocks = statSync(path).blocks;
          const node = await open(path, { discardUnmap });
          expect(await run(() => node.writeZeroes(1000, 128 * KiB + 1, flags))).toBe(0);
          const after = Buffer.from(pattern(256 * KiB)).fill(0, 1000, 1000 + 128 * KiB + 1);
          expect(readFileSync(path).equals(after)).toBe(true);
          expect(statSync(path).blocks < blocks).toBe(discardUnmap && flags !== 0);
          await node.close();
        }
      }
    });

    test("detect-zeroes turns written zeroes into write-zeroes, and nothing else", async () => {
      for (const detectZeroes of ["on", "unmap"] as const) {
        const path = image(pattern(256 * KiB));
        const blocks = statSync(path).blocks;
        const node = await open(path, { detectZeroes, discardUnmap: detectZeroes === "unmap" });
        expect(node.resolve(OP_WRITE, 0, 512, out)).toBe(SLOW);
        payload.u8.fill(0);
        expect(await run(() => node.write(0, 64 * KiB, payload.address, 0))).toBe(0);
        payload.u8[777] = 1;
        expect(await run(() => node.write(128 * KiB, 64 * KiB, payload.address, 0))).toBe(0);
        const after = Buffer.from(pattern(256 * KiB)).fill(0, 0, 64 * KiB);
        after.set(payload.u8.subarray(0, 64 * KiB), 128 * KiB);
        expect(readFileSync(path).equals(after)).toBe(true);
        expect(statSync(path).blocks < blocks).toBe(detectZeroes === "unmap");
        await node.close();
      }
    });

    test("a failed fsync of cached data makes every later flush fail", async () => {
      const path = image("x".repeat(512));
      const node = await open(path);
      expect(node.onMappedError(OP_WRITE, -EINVAL)).toBe(-EINVAL);
      expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(MAPPED);
      expect(node.onMappedError(OP_FLUSH, -EIO)).toBe(-EIO);
      expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(SLOW);
      expect(await run(() => node.flush())).toBe(-EIO);
      await node.close();

      const direct = await open(path, { cacheDirect: true });
      expect(direct.onMappedError(OP_FLUSH, -EIO)).toBe(-EIO);
      expect(direct.resolve(OP_FLUSH, 0, 0, out)).toBe(MAPPED);
      expect(await run(() => direct.flush())).toBe(0);
      await direct.close();
    });

    test("knows what O_DIRECT asks for, and whole requests work so", async () => {
      const path = image(pattern(64 * KiB));
      const node = await open(path, { cacheDirect: true, options: { aio: "native" } });
      const { requestAlignment, memoryAlignment } = node.limits;
      expect([512, 1024, 2048, 4096]).toContain(requestAlignment);
      expect(memoryAlignment).toBeGreaterThanOrEqual(512);
      payload.u8.set(pattern(requestAlignment, 9), memoryAlignment);
      const address = payload.address + memoryAlignment;
      const write = () => node.write(requestAlignment, requestAlignment, address, 0);
      expect(await run(write)).toBe(0);
      const after = Buffer.from(pattern(64 * KiB));
      after.set(pattern(requestAlignment, 9), requestAlignment);
      expect(readFileSync(path).equals(after)).toBe(true);
      expect(await run(() => node.read(0, 64 * KiB, payload.address))).toBe(0);
      expect(Buffer.from(payload.u8.subarray(0, 64 * KiB)).equals(after)).toBe(true);
      await node.close();
    });

    test("auto-read-only opens for writing while there is a writer, by one fd number", async () => {
      const path = image("x".repeat(512));
      const node = await open(path, { autoReadOnly: true });
      expect(node.writable).toBe(true);
      expect(await openMode(node)).toBe(0);
      const fd = out.fd;
      expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(ZERO);

      await node.setPermissions(used, shared);
      expect(await openMode(node)).toBe(O_RDWR);
      expect(out.fd).toBe(fd);
      payload.u8.set(pattern(512, 5));
      expect(await run(() => node.write(0, 512, payload.address, 0))).toBe(0);

      await node.setPermissions(PERM_CONSISTENT_READ, shared);
      expect(await openMode(node)).toBe(0);
      expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(MAPPED);
      expect(await run(() => node.flush())).toBe(0);
      expect(readFileSync(path).equals(pattern(512, 5))).toBe(true);
      await node.close();
    });

    test("takes image locks for what is used and kept, none without a user", async () => {
      const path = image("x".repeat(512));
      const probe = reactor.linux.open(path, O_RDWR);
      const locked = () => {
        const bytes: number[] = [];
        for (const base of [100, 200]) {
          for (let byte = base; byte < base + 4; byte++) {
            if (reactor.linux.testLock(probe, F_WRLCK, byte, 1) !== F_UNLCK) bytes.push(byte);
          }
        }
        return bytes;
      };
      for (const autoReadOnly of [false, true]) {
        const node = await open(path, { autoReadOnly });
        expect(locked()).toEqual([]);
        await node.setPermissions(used, shared);
        expect(locked()).toEqual([100, 101, 203]);
        await node.setPermissions(PERM_CONSISTENT_READ, shared);
        expect(locked()).toEqual([100, 203]);
        await node.setPermissions(0, PERM_ALL);
        expect(locked()).toEqual([]);
        await node.setPermissions(used, shared);
        await node.close();
        expect(locked()).toEqual([]);
      }
      const unlocked = await open(path, { options: { locking: "off" } });
      await unlocked.setPermissions(used, shared);
      expect(locked()).toEqual([]);
      await unlocked.close();
      reactor.linux.close(probe);
    });

    test("setPermissions() changes nothing when another node is in the way", async () => {
      const path = image("x".repeat(512));
      const owner = await open(path);
      await owner.setPermissions(used, PERM_CONSISTENT_READ);
      const node = await open(path, { autoReadOnly: true });
      await node.setPermissions(PERM_CONSISTENT_READ, PERM_ALL);
      await expect(node.setPermissions(used, PERM_ALL)).rejects.toThrow(
        /^Failed to get "write" lock$/,
      );
      expect(await openMode(node)).toBe(0);
      await owner.setPermissions(PERM_CONSISTENT_READ, PERM_ALL);
      await node.setPermissions(used, PERM_ALL);
      await Promise.all([owner.close(), node.close()]);
    });

    test("describe() tells what only an open file knows", async () => {
      const path = image("x".repeat(1000));
      const node = await open(path);
      expect(node.describe()).toEqual({
        exactFilename: path,
        actualBytes: statSync(path).blocks * 512,
        image: { "dirty-flag": false, "format-specific": { type: "file", data: {} } },
        limits: { "request-alignment": 1, "min-mem-alignment": 1 },
      });
      await node.close();
    });

    test("truncate() shrinks and grows, and forgets what was data", async () => {
      const path = image(pattern(64 * KiB));
      const node = await open(path);
      expect(await extentsOf(reactor, node, 0, 64 * KiB)).toEqual([[DATA, 64 * KiB]]);
      expect(node.isKnownData(32 * KiB, 32 * KiB)).toBe(true);
      await run(() => node.truncate!(16 * KiB + 1));
      node.refreshLength!();
      expect([statSync(path).size, node.bytes]).toEqual([16 * KiB + 1, 16 * KiB + 512]);
      await run(() => node.truncate!(64 * KiB));
      node.refreshLength!();
      expect([statSync(path).size, node.bytes]).toEqual([64 * KiB, 64 * KiB]);
      expect(node.isKnownData(32 * KiB, 32 * KiB)).toBe(false);
      expect(await extentsOf(reactor, node, 32 * KiB, 32 * KiB)).toEqual([[HOLE, 32 * KiB]]);
      await node.close();
    });

    test("truncate() says why it can't, and changes nothing", async () => {
      const path = image("x".repeat(1000));
      const node = await open(path);
      await expect(run(() => node.truncate!(2 ** 53 - 1))).rejects.toThrow(
        "Could not resize file: File too large",
      );
      expect(statSync(path).size).toBe(1000);
      await node.close();
    });

    test("describeStatistics() counts discards", async () => {
      const path = image(pattern(64 * KiB));
      const node = await open(path, { discardUnmap: true });
      await run(() => node.discard(0, 4 * KiB));
      await run(() => node.discard(8 * KiB, 8 * KiB));
      const expected = { "discard-nb-ok": 2, "discard-nb-failed": 0 };
      expect(node.describeStatistics!()).toEqual({ ...expected, "discard-bytes-ok": 12 * KiB });
      await node.close();
    });

    test("highestWrite is where the write ended that ended highest", async () => {
      const node = await open(image(pattern(64 * KiB)));
      node.resolve(OP_WRITE, 0, 512, out);
      await run(() => node.writeZeroes(4 * KiB, 512, 0));
      node.resolve(OP_READ, 32 * KiB, 512, out);
      expect(node.highestWrite).toBe(4 * KiB + 512);
      await node.close();
    });

    test("open() refuses what QSD refuses, and leaves nothing open", async () => {
      const path = image("x".repeat(512));
      await expect(open("")).rejects.toThrow("The 'file' block driver requires a file name");
      await expect(open(path, { options: { aio: "native" } })).rejects.toThrow(
        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
      );
      await expect(open(path, { options: { "pr-manager": "x" } })).rejects.toThrow(
        "No persistent reservation manager with id 'x'",
      );
      const opened = readdirSync("/proc/self/fd").filter((fd) => linkOf(fd) === path);
      expect(opened).toEqual([]);
    });
  });
}
