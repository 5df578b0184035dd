import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  ENTRY_BYTES,
  HEADER_SNAPSHOTS_OFFSET,
  QCOW_MAX_L1_SIZE,
} from "../../../../../src/abi/qcow2.ts";
import * as abi from "../../../../../src/abi/qcow2-snapshots.ts";
import { viewOf } from "../../../../../src/block/drivers/qcow2/header.ts";
import {
  cutName,
  makeSnapshot,
  nextSnapshotId,
  type Snapshot,
  snapshotTable,
  snapshotTableBytes,
} from "../../../../../src/block/drivers/qcow2/snapshots.ts";
import { OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE } from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { EINVAL, ENOENT } from "../../../../../src/runtime/errno.ts";
import { Payload } from "../../../../support/block.ts";
import { run } from "../../../../support/clients.ts";
import { pattern as patternOf } from "../../../../support/images.ts";
import { checkImage, openImage } from "../../../../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 4096;
const pattern = (bytes: number, seed: number) => new Uint8Array(patternOf(bytes, seed));
const TIME_US = 1_700_000_000_123_456;

const snapshotOf = (id: string, name: string): Snapshot =>
  makeSnapshot({
    id,
    name,
    l1TableOffset: 3 * CLUSTER,
    l1Size: 2,
    diskBytes: 5e9,
    timeUs: TIME_US,
  });

describe("the snapshot table", () => {
  test("holds what a snapshot is", () => {
    const one = snapshotOf("7", "é");
    const { entry: _, ...facts } = one;
    expect(facts).toEqual({
      id: "7",
      name: "é",
      l1TableOffset: 3 * CLUSTER,
      l1Size: 2,
      dateSeconds: 1_700_000_000,
      dateNanoseconds: 123_456_000,
      vmClockNs: 1_700_000_000_123_456_000n,
      vmStateBytes: 0,
      icount: null,
    });
    const disk = abi.SNAPSHOT_HEADER_BYTES + abi.SNAPSHOT_EXTRA_DISK_SIZE;
    expect(viewOf(one.entry).getBigUint64(disk)).toBe(5_000_000_000n);
  });

  test("has entries at multiples of eight", () => {
    const [one, other] = [snapshotOf("1", "abc"), snapshotOf("2", "")];
    const table = snapshotTable([one, other]);
    expect(table.length).toBe(snapshotTableBytes([one, other]));
    expect(table.length).toBe(72 + 65);
    expect([...table.slice(72)]).toEqual([...other.entry]);
    expect(snapshotTableBytes([])).toBe(0);
  });

  test("numbers on from the highest id", () => {
    expect(nextSnapshotId([])).toBe("1");
    const ids = ["3", "x", "12", "", "7up"].map((id) => snapshotOf(id, "n"));
    expect(nextSnapshotId(ids)).toBe("13");
  });

  test("cuts names between characters", () => {
    expect(cutName("x".repeat(300))).toBe("x".repeat(255));
    expect(cutName("é".repeat(200))).toBe("é".repeat(127));
    expect(cutName("short")).toBe("short");
  });
});

/** Host clusters that L2 entries of the disk lead to. */
function allocatedIn(path: string): number {
  const image = openImage(path);
  const { l1, clusterBytes } = image.header;
  let count = 0;
  for (let i = 0; i < l1.count; i++) {
    const { offset } = image.l1Entry(l1, i);
    if (offset === 0) continue;
    const view = viewOf(image.source.read(offset, clusterBytes));
    for (let j = 0; j < image.l2Count; j++) {
      if (image.parseL2Entry(view, j * image.l2EntryBytes).host !== 0) count++;
    }
  }
  return count;
}

describe("internal snapshots", () => {
  let folder: string;
  let path: string;
  let reactor: Reactor;
  let image: OpenedImage;
  let payload: Payload;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "outport-snapshots-"));
    path = join(folder, "image.qcow2");
    reactor = makeReactor("epoll");
    payload = new Payload(reactor, 64 * 1024);
  });

  afterEach(async () => {
    await image.close();
    expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
    reactor.engine.close();
    reactor.memory.unmap();
    rmSync(folder, { recursive: true });
  });

  const open = async (options: string): Promise<void> => {
    const create = ["create", "-q", "-f", "qcow2", "-o", options, path, "8M"];
    await run("qemu-img", create);
    image = await openQcow2(reactor, { path });
  };
  const ask = (op: 0 | 1 | 2 | 3, offset: number, bytes: number) =>
    runOn(reactor, () => image.backend.request(op, offset, bytes, payload.address, 0));
  const write = async (offset: number, bytes: number, seed: number): Promise<Uint8Array> => {
    const content = pattern(bytes, seed);
    payload.u8.set(content);
    expect(await ask(OP_WRITE, offset, bytes)).toBe(0);
    return content;
  };
  const read = async (offset: number, bytes: number): Promise<Uint8Array> => {
    expect(await ask(OP_READ, offset, bytes)).toBe(0);
    return payload.u8.slice(0, bytes);
  };
  const take = (name: string) => runOn(reactor, () => image.node.takeSnapshot!(name, TIME_US));
  const drop = (id: string, name: string) =>
    runOn(reactor, () => image.node.deleteSnapshot!(id, name));
  /** Without closing it: as another program would find it after a flush. */
  const expectSound = (): void => {
    const { corruptions, leaks } = checkImage(openImage(path));
    expect({ corruptions, leaks }).toEqual({ corruptions: [], leaks: [] });
  };
  const seen = (name: string, offset: number, bytes: number): Uint8Array => {
    const opened = openImage(path);
    const snapshot = opened.snapshots.find((one) => one.name === name);
    return opened.readSnapshot(snapshot!, offset, bytes);
  };

  for (const options of [
    "cluster_size=4k",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4k,compat=0.10",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,lazy_refcounts=on",
    "cluster_size=4k,refcount_bits=2",
  ]) {
    test(`keep what was there: ${options}`, async () => {
      await open(options);
      const before = await write(0, 64 * 1024, 1);
      expect(await take("one")).toEqual({ id: "1" });
      expectSound();
      const after = await write(8192, 16 * 1024, 2);
      expect(await ask(OP_DISCARD, 32 * 1024, 16 * 1024)).toBe(0);
      expect(await ask(OP_FLUSH, 0, 0)).toBe(0);
      expect(await take("two")).toEqual({ id: "2" });
      expectSound();
      await write(4096, 8192, 3);
      expect(seen("one", 0, before.length)).toEqual(before);
      expect(seen("two", 8192, after.length)).toEqual(after);
      expect(await drop("1", "one")).toBe(0);
      expectSound();
      expect(seen("two", 8192, after.length)).toEqual(after);
      expect(await drop("2", "two")).toBe(0);
      expectSound();
      expect(await read(0, 4096)).toEqual(before.slice(0, 4096));
      expect(await read(12 * 1024, 12 * 1024)).toEqual(after.slice(4096));
      await image.close();
      image = await openQcow2(reactor, { path });
      expectSound();
      expect(await read(4096, 8192)).toEqual(pattern(8192, 3));
      expect(openImage(path).snapshots).toEqual([]);
    });
  }

  test("give back all that only they had", async () => {
    await open("cluster_size=4k");
    await write(0, 64 * 1024, 1);
    await take("one");
    await write(0, 64 * 1024, 2);
    const bytes = readFileSync(path).length;
    await drop("1", "one");
    await image.close();
    image = await openQcow2(reactor, { path });
    await write(64 * 1024, 64 * 1024, 3);
    await ask(OP_FLUSH, 0, 0);
    expectSound();
    await image.close();
    expect(readFileSync(path).length).toBeLessThanOrEqual(bytes + 16 * CLUSTER);
    image = await openQcow2(reactor, { path });
  });

  test("write over what is not shared, as before", async () => {
    await open("cluster_size=4k");
    await write(0, 4096, 1);
    await take("one");
    await write(0, 4096, 2);
    await ask(OP_FLUSH, 0, 0);
    const mapping = { fd: 0, offset: 0, bytes: 0 };
    image.node.resolve(OP_WRITE, 0, 4096, mapping);
    const place = mapping.offset;
    await write(0, 4096, 3);
    image.node.resolve(OP_WRITE, 0, 4096, mapping);
    expect(mapping.offset).toBe(place);
    expect(seen("one", 0, 4096)).toEqual(pattern(4096, 1));
  });

  test("refuse where a refcount has no room, and change nothing", async () => {
    await open("cluster_size=4k,refcount_bits=1");
    expect(await take("empty")).toEqual({ id: "1" });
    await write(0, 4096, 1);
    expect(await take("full")).toBe(-EINVAL);
    expectSound();
    expect(openImage(path).snapshots.map(({ name }) => name)).toEqual(["empty"]);
    expect(await drop("1", "full")).toBe(-ENOENT);
    expect(await drop("1", "empty")).toBe(0);
    expectSound();
  });

  test("that lie where no table can are not deleted", async () => {
    await open("cluster_size=4k");
    await write(0, 64 * 1024, 1);
    await take("one");
    await write(0, 64 * 1024, 2);
    await take("two");
    await image.close();
    const bytes = readFileSync(path);
    const at = viewOf(bytes).getUint32(HEADER_SNAPSHOTS_OFFSET + 4);
    const l1At = at + abi.SNAPSHOT_L1_TABLE_OFFSET + 4;
    bytes.writeUInt32BE(bytes.readUInt32BE(l1At) + 512, l1At);
    writeFileSync(path, bytes);
    image = await openQcow2(reactor, { path });
    expect(await drop("1", "one")).toBe(-EINVAL);
    expect(seen("two", 0, 4096)).toEqual(pattern(4096, 2));
  });

  test("that claim more than there can be are not opened", async () => {
    await open("cluster_size=512");
    for (let i = 0; i < 20; i++) await take(`s${i}`);
    await image.close();
    const opened = openImage(path);
    const bytes = readFileSync(path);
    let at = opened.header.snapshots.offset;
    for (const { id, name } of opened.snapshots) {
      bytes.writeUInt32BE(QCOW_MAX_L1_SIZE / ENTRY_BYTES, at + abi.SNAPSHOT_L1_SIZE);
      const textBytes = id.length + name.length;
      at += Math.ceil((abi.SNAPSHOT_HEADER_BYTES + abi.SNAPSHOT_EXTRA_BYTES + textBytes) / 8) * 8;
    }
    const claiming = join(folder, "claiming.qcow2");
    writeFileSync(claiming, bytes);
    image = await openQcow2(reactor, { path });
    const failed = openQcow2(reactor, { path: claiming }).catch((error: Error) => error.message);
    expect(await failed).toBe("Snapshot table is too big");
  });

  test("and a shorter disk: what discards kept in place goes with it", async () => {
    await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "8M"]);
    image = await openQcow2(reactor, { path, options: { "discard-no-unref": true } });
    await write(0, 64 * 1024, 1);
    expect(await ask(OP_DISCARD, 0, 64 * 1024)).toBe(0);
    await runOn(reactor, () => image.node.truncate!(16 * 1024));
    await image.close();
    const { header } = openImage(path);
    expect([header.bytes, allocatedIn(path)]).toEqual([16 * 1024, 4]);
    expectSound();
    image = await openQcow2(reactor, { path });
  });

  test("are listed with their times", async () => {
    await open("cluster_size=4k");
    await take("one");
    expect(image.node.describe().image?.snapshots).toEqual([
      {
        id: "1",
        name: "one",
        "vm-state-size": 0,
        "date-sec": 1_700_000_000,
        "date-nsec": 123_456_000,
        "vm-clock-sec": 1_700_000_000,
        "vm-clock-nsec": 123_456_000,
      },
    ]);
  });
});
