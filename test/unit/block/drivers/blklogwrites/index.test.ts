import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  LOG_DISCARD_FLAG,
  LOG_ENTRY_FLAGS,
  LOG_ENTRY_NR_SECTORS,
  LOG_ENTRY_SECTOR,
  LOG_FLUSH_FLAG,
  LOG_FUA_FLAG,
  LOG_SUPER_MAGIC,
  LOG_SUPER_NR_ENTRIES,
  LOG_SUPER_SECTORSIZE,
  LOG_SUPER_VERSION,
} from "../../../../../src/abi/log-writes.ts";
import { blklogwrites } from "../../../../../src/block/drivers/blklogwrites/index.ts";
import { file } from "../../../../../src/block/drivers/file/index.ts";
import { raw } from "../../../../../src/block/drivers/raw.ts";
import { ALIGNMENT_MAX, type BlockNode, REQ_FUA } from "../../../../../src/block/node.ts";
import { openContext, Payload } from "../../../../support/block.ts";
import { FakeNode } from "../../../../support/fake-node.ts";
import { pattern } from "../../../../support/images.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const directory = mkdtempSync(join(tmpdir(), "outport-log-"));
afterAll(() => rmSync(directory, { recursive: true }));
const path = join(directory, "log.raw");
const DISK_BYTES = 65_536;

function openLog() {
  const options = { filename: path, locking: "off" };
  return runOn(reactor, () => file.open(openContext(reactor, { nodeName: "log", options })));
}

async function open(
  options: Record<string, unknown>,
  disk = new FakeNode(reactor, DISK_BYTES),
  { log, handedOver }: { log?: BlockNode; handedOver?: unknown } = {},
) {
  const children = { file: disk, log: log ?? (await openLog()) };
  const context = openContext(reactor, { options, discardUnmap: true, children, handedOver });
  return { disk, node: await runOn(reactor, () => blklogwrites.open(context)) };
}

interface Entry {
  readonly sector: number;
  readonly count: number;
  readonly flags: number;
  readonly data: Buffer;
}

/** The log as a replaying tool reads it. */
function readLog(): { sectorBytes: number; entries: Entry[] } {
  const bytes = readFileSync(path);
  const u64 = (at: number) => Number(bytes.readBigUInt64LE(at));
  expect(bytes.readBigUInt64LE(LOG_SUPER_MAGIC)).toBe(0x6a736677736872n);
  expect(u64(LOG_SUPER_VERSION)).toBe(1);
  const sectorBytes = bytes.readUInt32LE(LOG_SUPER_SECTORSIZE);
  const entries: Entry[] = [];
  let at = sectorBytes;
  for (let index = 0; index < u64(LOG_SUPER_NR_ENTRIES); index++) {
    const flags = u64(at + LOG_ENTRY_FLAGS);
    const sector = u64(at + LOG_ENTRY_SECTOR);
    const count = u64(at + LOG_ENTRY_NR_SECTORS);
    at += sectorBytes;
    const end = at + ((flags & LOG_DISCARD_FLAG) === 0 ? count * sectorBytes : 0);
    entries.push({ sector, count, flags, data: bytes.subarray(at, end) });
    at = end;
  }
  return { sectorBytes, entries };
}

const written = (bytes: number, seed: number) => {
  const payload = new Payload(reactor, bytes);
  payload.u8.set(pattern(bytes, seed));
  return payload.address;
};

describe("blklogwrites", () => {
  test("logs what changes the disk, in order", async () => {
    writeFileSync(path, "");
    const { node, disk } = await open({});
    const results = [
      await runOn(reactor, () => node.write(1024, 1024, written(1024, 1), 0)),
      await runOn(reactor, () => node.write(0, 512, written(512, 2), REQ_FUA)),
      await runOn(reactor, () => node.writeZeroes(1024, 512, 0)),
      await runOn(reactor, () => node.discard(4096, 4096)),
      await runOn(reactor, () => node.flush()),
    ];
    expect(results).toEqual([0, 0, 0, 0, 0]);
    expect(disk.data.subarray(0, 512)).toEqual(new Uint8Array(pattern(512, 2)));
    const { sectorBytes, entries } = readLog();
    expect(sectorBytes).toBe(512);
    expect(entries).toEqual([
      { sector: 2, count: 2, flags: 0, data: pattern(1024, 1) },
      { sector: 0, count: 1, flags: LOG_FUA_FLAG, data: pattern(512, 2) },
      { sector: 2, count: 1, flags: 0, data: Buffer.alloc(512) },
      { sector: 8, count: 8, flags: LOG_DISCARD_FLAG, data: Buffer.alloc(0) },
      { sector: 0, count: 0, flags: LOG_FLUSH_FLAG, data: Buffer.alloc(0) },
    ]);
  });

  test("keeps concurrent writes apart", async () => {
    writeFileSync(path, "");
    const { node } = await open({ "log-sector-size": 4096 });
    const seeds = Array.from({ length: 12 }, (_, index) => index + 1);
    const write = (seed: number) => node.write((seed - 1) * 4096, 4096, written(4096, seed), 0);
    await runOn(reactor, () => Promise.all(seeds.map(write)));
    await runOn(reactor, () => node.flush());
    const { entries } = readLog();
    expect(entries.length).toBe(13);
    for (const { sector, data, flags } of entries) {
      if (flags === 0) expect(data).toEqual(pattern(4096, sector + 1));
    }
  });

  test("goes on with a log with log-append", async () => {
    writeFileSync(path, "");
    for (const seed of [1, 2]) {
      const { node } = await open({ "log-append": true });
      await runOn(reactor, () => node.write(0, 512, written(512, seed), 0));
      await runOn(reactor, () => node.flush());
    }
    const { entries } = readLog();
    expect(entries.map(({ flags }) => flags)).toEqual([0, LOG_FLUSH_FLAG, 0, LOG_FLUSH_FLAG]);
    expect(entries[2]?.data).toEqual(pattern(512, 2));
  });

  test("goes on with its log after a move", async () => {
    writeFileSync(path, "");
    const write = async (node: BlockNode, seed: number) =>
      runOn(reactor, () => node.write(0, 1024, written(1024, seed), 0));
    const { node, disk } = await open({ "log-sector-size": 1024 });
    await write(node, 1);
    const handedOver = structuredClone(node.handOver!());
    await runOn(reactor, () => node.flush());
    const { node: moved } = await open({ "log-sector-size": 1024 }, disk, { handedOver });
    await write(moved, 2);
    await runOn(reactor, () => moved.flush());
    const data = readLog().entries.map((entry) => entry.data);
    expect(data).toEqual([pattern(1024, 1), pattern(1024, 2), Buffer.alloc(0)]);
  });

  test("lets a log grow through the nodes above its file", async () => {
    writeFileSync(path, "");
    const context = openContext(reactor, { children: { file: await openLog() } });
    const log = await runOn(reactor, () => raw.open(context));
    const { node } = await open({}, new FakeNode(reactor, DISK_BYTES), { log });
    const results = [
      await runOn(reactor, () => node.write(0, 1024, written(1024, 1), 0)),
      await runOn(reactor, () => node.write(1024, 512, written(512, 2), 0)),
      await runOn(reactor, () => node.flush()),
    ];
    expect(results).toEqual([0, 0, 0]);
    const data = readLog().entries.map((entry) => entry.data);
    expect(data).toEqual([pattern(1024, 1), pattern(512, 2), Buffer.alloc(0)]);
  });

  test("writes the superblock after so many entries", async () => {
    writeFileSync(path, "");
    const { node } = await open({ "log-super-update-interval": 2 });
    await runOn(reactor, () => node.write(0, 512, written(512, 1), 0));
    await runOn(reactor, () => node.write(0, 512, written(512, 1), 0));
    expect(readLog().entries.length).toBe(2);
  });

  test("logs what failed on the disk, and fails", async () => {
    writeFileSync(path, "");
    const { node, disk } = await open({ "log-super-update-interval": 1 });
    disk.fails = () => -28;
    expect(await runOn(reactor, () => node.write(0, 512, written(512, 1), 0))).toBe(-28);
    expect(readLog().entries.length).toBe(1);
  });

  const superblock = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.alloc(1024);
    bytes.writeBigUInt64LE(0x6a736677736872n, LOG_SUPER_MAGIC);
    bytes.writeBigUInt64LE(1n, LOG_SUPER_VERSION);
    bytes.writeUInt32LE(512, LOG_SUPER_SECTORSIZE);
    change(bytes);
    return bytes;
  };
  const damaged: [string, Buffer, string][] = [
    ["magic", superblock((bytes) => bytes.fill(0, 0, 8)), "Invalid log superblock magic"],
    ["version", superblock((bytes) => bytes.fill(9, 8, 9)), "Unsupported log version 9"],
    ["sector size", superblock((bytes) => bytes.fill(0, 24, 28)), "Invalid log sector size 0"],
    ["huge count", superblock((bytes) => bytes.fill(255, 16, 24)), "Failed to read log entry"],
    [
      "flags",
      superblock((bytes) => {
        bytes.fill(1, 16, 17);
        bytes.fill(16, 512 + LOG_ENTRY_FLAGS, 513 + LOG_ENTRY_FLAGS);
      }),
      "Invalid flags 0x10 in log entry 0",
    ],
  ];
  for (const [what, bytes, message] of damaged) {
    test(`refuses a log with a wrong ${what}`, async () => {
      writeFileSync(path, bytes);
      truncateSync(path, bytes.length);
      await expect(open({ "log-append": true })).rejects.toThrow(message);
    });
  }

  const refused: [Record<string, unknown>, string][] = [
    [{ "log-append": true, "log-sector-size": 512 }, "mutually exclusive"],
    [{ "log-sector-size": 3 }, "Invalid log sector size 3"],
    [{ "log-sector-size": 2 * ALIGNMENT_MAX }, "Invalid log sector size 524288"],
    [{ "log-sector-size": 2 ** 24 }, "Invalid log sector size 16777216"],
    [{ "log-super-update-interval": 0 }, "Invalid log superblock update interval 0"],
  ];
  for (const [options, message] of refused) {
    test(`refuses ${JSON.stringify(options)}`, async () => {
      writeFileSync(path, "");
      await expect(open(options)).rejects.toThrow(message);
    });
  }
});
