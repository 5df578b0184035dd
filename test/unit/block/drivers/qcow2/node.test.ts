import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as abi from "../../../../../src/abi/qcow2.ts";
import {
  MAPPED,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_FUA,
  REQ_MAY_UNMAP,
  type Resolution,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { EIO, ENOMEDIUM } from "../../../../../src/runtime/errno.ts";
import { extentsOf, Payload } from "../../../../support/block.ts";
import { pattern } from "../../../../support/images.ts";
import { emptyImage } from "../../../../support/qcow2-header.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 65536;
const L2_TABLE = 4 * CLUSTER;

describe("Qcow2Node", () => {
  let folder: string;
  let path: string;
  let reactor: Reactor;
  let image: OpenedImage;
  let payload: Payload;
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "outport-qcow2-"));
    path = join(folder, "image.qcow2");
    writeFileSync(path, emptyImage());
    reactor = makeReactor("epoll");
    payload = new Payload(reactor, CLUSTER);
    image = await openQcow2(reactor, { path });
  });

  afterEach(async () => {
    await image.close();
    expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
    reactor.engine.close();
    reactor.memory.unmap();
    rmSync(folder, { recursive: true });
  });

  const ask = (op: 0 | 1 | 2 | 3 | 4 | 5, offset: number, bytes: number, flags = 0) =>
    runOn(reactor, () => image.backend.request(op, offset, bytes, payload.address, flags));
  const write = (offset: number, bytes: number, flags = 0) => ask(OP_WRITE, offset, bytes, flags);
  const resolve = (op: 0 | 1 | 2, offset: number, bytes: number) =>
    image.node.resolve(op, offset, bytes, out);
  const reopen = async (): Promise<void> => {
    await image.close();
    image = await openQcow2(reactor, { path });
  };
  const change = async (edit: (view: DataView) => void): Promise<void> => {
    await image.close();
    const bytes = readFileSync(path);
    edit(new DataView(bytes.buffer, bytes.byteOffset, bytes.length));
    writeFileSync(path, bytes);
    image = await openQcow2(reactor, { path });
  };

  test("reads zeroes without a table, and says so", async () => {
    expect([resolve(OP_READ, 0, 4096), out.bytes]).toEqual([ZERO, 4096]);
    expect(await extentsOf(reactor, image.node, 0, 2 * CLUSTER)).toEqual([
      [STATUS_ZERO, 2 * CLUSTER],
    ]);
  });

  test("maps reads and overwrites of what was written", async () => {
    payload.u8.set(pattern(4096));
    expect(await write(CLUSTER + 4096, 4096)).toBe(0);
    expect(resolve(OP_READ, CLUSTER + 4096, 4096)).toBe(MAPPED);
    const at = out.offset;
    expect([resolve(OP_WRITE, CLUSTER + 4096, 4096), out.offset]).toEqual([MAPPED, at]);
    payload.u8.fill(0);
    expect(await ask(OP_READ, CLUSTER + 4096, 4096)).toBe(0);
    expect(payload.u8.subarray(0, 4096)).toEqual(new Uint8Array(pattern(4096)));
    expect(await write(CLUSTER, CLUSTER)).toBe(0);
    expect(await extentsOf(reactor, image.node, 0, 3 * CLUSTER)).toEqual([
      [STATUS_ZERO, CLUSTER],
      [STATUS_DATA | STATUS_ALLOCATED, CLUSTER],
      [STATUS_ZERO, CLUSTER],
    ]);
  });

  test("sends nothing from places that may become others'", async () => {
    await write(0, CLUSTER);
    expect(image.backend.findCached(0, CLUSTER, out)).toBe(false);
    await image.close();
    image = await openQcow2(reactor, { path, readOnly: true });
    expect(await ask(OP_READ, 0, CLUSTER)).toBe(0);
    expect(image.backend.findCached(0, CLUSTER, out)).toBe(true);
  });

  test("merges neighbours into one run", async () => {
    expect([await write(0, CLUSTER), await write(CLUSTER, CLUSTER)]).toEqual([0, 0]);
    expect([resolve(OP_READ, 0, 2 * CLUSTER), out.bytes]).toEqual([MAPPED, 2 * CLUSTER]);
  });

  test("allocates at once where a table is in memory", async () => {
    await write(0, 4096);
    expect(resolve(OP_WRITE, 5 * CLUSTER + 512, 4096)).toBe(MAPPED);
    expect(resolve(OP_READ, 5 * CLUSTER, CLUSTER)).toBe(MAPPED);
  });

  test("keeps what was flushed when nobody closes it", async () => {
    payload.u8.fill(7);
    await write(0, 4096);
    expect(resolve(OP_FLUSH, 0, 0)).toBe(SLOW);
    expect(await ask(OP_FLUSH, 0, 0)).toBe(0);
    expect(resolve(OP_FLUSH, 0, 0)).toBe(MAPPED);
    const copy = join(folder, "copy.qcow2");
    writeFileSync(copy, readFileSync(path));
    const other = await openQcow2(reactor, { path: copy, readOnly: true });
    const read = () => other.backend.request(OP_READ, 0, 4096, payload.address, 0);
    payload.u8.fill(0);
    expect(await runOn(reactor, read)).toBe(0);
    expect(payload.u8[4095]).toBe(7);
    await other.close();
  });

  test("flushes what tells of the place with a synchronous write", async () => {
    await write(0, 4096);
    expect(await write(CLUSTER, 4096, REQ_FUA)).toBe(0);
    expect(resolve(OP_FLUSH, 0, 0)).toBe(MAPPED);
  });

  test("gives clusters back, but not before they are free on the disk", async () => {
    await write(0, CLUSTER);
    resolve(OP_READ, 0, 512);
    const first = out.offset;
    expect(await ask(OP_DISCARD, 0, CLUSTER)).toBe(0);
    await write(CLUSTER, CLUSTER);
    resolve(OP_READ, CLUSTER, 512);
    expect(out.offset).not.toBe(first);
    await ask(OP_FLUSH, 0, 0);
    // One of the next finds out that nothing is on its way there any more.
    const places: number[] = [];
    for (let index = 2; places.at(-1) !== first && index < 100; index++) {
      await write(index * CLUSTER, CLUSTER);
      resolve(OP_READ, index * CLUSTER, 512);
      places.push(out.offset);
      await runOn(reactor, () => reactor.sleep(1_000_000));
    }
    expect(places).toContain(first);
  });

  test("zeroes clusters with or without their places", async () => {
    await write(0, 2 * CLUSTER);
    expect(await ask(OP_WRITE_ZEROES, 0, CLUSTER, 0)).toBe(0);
    expect(await ask(OP_WRITE_ZEROES, CLUSTER, CLUSTER, REQ_MAY_UNMAP)).toBe(0);
    expect([resolve(OP_READ, 0, CLUSTER), resolve(OP_READ, CLUSTER, CLUSTER)]).toEqual([
      ZERO,
      ZERO,
    ]);
    expect(await extentsOf(reactor, image.node, 0, 2 * CLUSTER)).toEqual([
      [STATUS_ZERO | STATUS_ALLOCATED, 2 * CLUSTER],
    ]);
  });

  test("leaves the file as long as it must be", async () => {
    await write(0, 4096);
    await reopen();
    // Header, two tables of refcounts, L1, an L2 table, a cluster.
    expect(readFileSync(path).length).toBe(6 * CLUSTER);
  });

  test("marks an image corrupt whose table points nowhere, and stops", async () => {
    await write(0, 4096);
    await change((view) => view.setUint32(L2_TABLE + 4, 0x50200));
    expect(await ask(OP_READ, 0, 4096)).toBe(-EIO);
    expect(image.events).toEqual([
      {
        event: "image-corrupted",
        nodeName: "node0",
        message: "Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0)",
        fatal: true,
      },
    ]);
    expect(await ask(OP_READ, CLUSTER, 4096)).toBe(-ENOMEDIUM);
    expect(await ask(OP_FLUSH, 0, 0)).toBe(-ENOMEDIUM);
    await image.close();
    const view = new DataView(new Uint8Array(readFileSync(path)).buffer);
    const features = view.getUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4);
    expect(features).toBe(abi.QCOW2_INCOMPAT_CORRUPT);
    image = await openQcow2(reactor, { path, readOnly: true });
  });

  test("never writes over metadata", async () => {
    await write(0, 4096);
    await change((view) => view.setUint32(L2_TABLE + 4, 0x30000));
    const before = readFileSync(path);
    expect(resolve(OP_WRITE, 0, 4096)).toBe(SLOW);
    expect(await write(0, 4096)).toBe(-EIO);
    expect(image.events[0]).toEqual({
      event: "image-corrupted",
      nodeName: "node0",
      message: "Preventing invalid write on metadata (overlaps with active L1 table)",
      fatal: true,
      offset: 0x30000,
      bytes: 4096,
    });
    await image.close();
    const after = readFileSync(path);
    expect(after.subarray(512)).toEqual(before.subarray(512));
    image = await openQcow2(reactor, { path, readOnly: true });
  });

  test("never allocates what the refcounts wrongly call free", async () => {
    await change((view) => view.setUint16(0x20000 + 2 * 3, 0));
    expect(await write(0, 4096)).toBe(-EIO);
    expect(image.events[0]).toMatchObject({
      message: "Preventing invalid write on metadata (overlaps with active L1 table)",
    });
    await image.close();
    image = await openQcow2(reactor, { path, readOnly: true });
  });

  test("clears autoclear features that its writes would belie: unknown ones, bitmaps", async () => {
    await change((view) => {
      view.setUint32(abi.HEADER_AUTOCLEAR_FEATURES, 0x10);
      view.setUint32(abi.HEADER_AUTOCLEAR_FEATURES + 4, abi.QCOW2_AUTOCLEAR_BITMAPS);
    });
    const view = new DataView(new Uint8Array(readFileSync(path)).buffer);
    expect(view.getBigUint64(abi.HEADER_AUTOCLEAR_FEATURES)).toBe(0n);
  });

  test("repairs refcounts of an image that was not closed", async () => {
    await write(0, 4096);
    await change((view) => {
      view.setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, abi.QCOW2_INCOMPAT_DIRTY);
      for (let cluster = 0; cluster < 8; cluster++) view.setUint16(0x20000 + 2 * cluster, 9);
    });
    await image.close();
    const view = new DataView(new Uint8Array(readFileSync(path)).buffer);
    const counts = Array.from({ length: 8 }, (_, i) => view.getUint16(0x20000 + 2 * i));
    expect(counts).toEqual([1, 1, 1, 1, 1, 1, 0, 0]);
    expect(view.getUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4)).toBe(0);
    image = await openQcow2(reactor, { path, readOnly: true });
  });

  test("takes another length, and reads zeroes beyond the old one", async () => {
    payload.u8.fill(9);
    const last = 64 * 1024 * 1024 - 4096;
    await write(last, 4096);
    await runOn(reactor, () => image.node.truncate!(last + 512));
    expect(image.node.bytes).toBe(last + 512);
    await runOn(reactor, () => image.node.truncate!(1024 * 1024 * 1024));
    await reopen();
    expect(image.node.bytes).toBe(1024 * 1024 * 1024);
    expect(await ask(OP_READ, last, 4096)).toBe(0);
    expect([payload.u8[511], payload.u8[512], payload.u8[4095]]).toEqual([9, 0, 0]);
  });
});
