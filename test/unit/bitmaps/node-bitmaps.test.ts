import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { DirtyBitmap } from "../../../src/bitmaps/dirty-bitmap.ts";
import { bitmapsOf, dirtyInfosOf, fitBitmaps } from "../../../src/bitmaps/node-bitmaps.ts";
import { BlockBackend } from "../../../src/block/backend.ts";
import { raw } from "../../../src/block/drivers/raw.ts";
import {
  type BlockNode,
  OP_DISCARD,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
} from "../../../src/block/node.ts";
import { truncateNode } from "../../../src/block/truncate.ts";
import { openContext, Payload } from "../../support/block.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const BYTES = 64 * 1024;
const reactor = makeReactor("epoll");
let file: FakeNode;
let disk: BlockNode;

afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

beforeEach(async () => {
  file = new FakeNode(reactor, BYTES);
  const options = { offset: 8192 };
  disk = await raw.open(openContext(reactor, { children: { file }, options, discardUnmap: true }));
});

function add(node: BlockNode, name: string, enabled = true): DirtyBitmap {
  const { bytes } = node;
  const bitmap = new DirtyBitmap({ name, bytes, granularity: 512, persistent: false, enabled });
  bitmapsOf(node).add(bitmap);
  return bitmap;
}

const dirty = (bitmap: DirtyBitmap): number[] => {
  const { bits } = bitmap;
  return Array.from({ length: bits.bitCount }, (_, i) => i).filter((i) => bits.get(i * 512));
};

async function request(op: 0 | 1 | 3 | 4, offset: number, bytes: number): Promise<number> {
  const backend = new BlockBackend(reactor, disk, { writable: true, writethrough: false });
  const payload = new Payload(reactor, bytes);
  const result = await runOn(reactor, () => {
    return backend.request(op, offset, bytes, payload.address, 0);
  });
  reactor.buffers.free(payload.address - reactor.memory.address);
  await runOn(reactor, () => backend.close());
  return result;
}

describe("a node's bitmaps", () => {
  test("are marked by every kind of write, also below, at the offsets there", async () => {
    const [above, below] = [add(disk, "above"), add(file, "below")];
    const off = add(disk, "off", false);
    await request(OP_WRITE, 512, 1024);
    await request(OP_WRITE_ZEROES, 4096, 512);
    await request(OP_DISCARD, 8192, 512);
    await request(OP_READ, 0, 512);
    expect(dirty(above)).toEqual([1, 2, 8, 16]);
    expect(dirty(below)).toEqual([17, 18, 24, 32]);
    expect(dirty(off)).toEqual([]);
  });

  test("are marked also when the write fails", async () => {
    const bitmap = add(file, "b");
    file.fails = () => -5;
    expect(await request(OP_WRITE, 0, 512)).toBe(-5);
    expect(dirty(bitmap)).toEqual([16]);
  });

  test("cost the node nothing once they are gone", () => {
    const bitmap = add(file, "b");
    expect(Object.hasOwn(file, "write")).toBe(true);
    bitmapsOf(file).remove(bitmap);
    expect(Object.hasOwn(file, "write")).toBe(false);
    expect(dirtyInfosOf(file)).toBeUndefined();
  });

  test("have names of their own, and come newest first", () => {
    add(disk, "one");
    add(disk, "two");
    expect(() => add(disk, "one")).toThrow("Bitmap already exists: one");
    expect(dirtyInfosOf(disk)?.map(({ name }) => name)).toEqual(["two", "one"]);
    expect(() => bitmapsOf(disk).get("none")).toThrow("Dirty bitmap 'none' not found");
    expect(() => add(disk, "é".repeat(512))).toThrow("Bitmap name too long");
    expect(add(disk, "x".repeat(1023)).name).toHaveLength(1023);
  });

  test("follow the node's length", () => {
    const bitmap = add(disk, "b");
    bitmap.bits.set(0, BYTES);
    Object.assign(disk, { bytes: 4096 });
    fitBitmaps(disk);
    expect(bitmap.info.count).toBe(4096);
  });

  test("follow at once when a node grows outside of a drained section", async () => {
    Object.assign(file, { truncate: async (bytes: number) => file.resize(bytes) });
    const bitmap = add(file, "b");
    await truncateNode(file, BYTES + 1024);
    await runOn(reactor, () => file.writeZeroes(BYTES + 512, 512, 0));
    expect(dirty(bitmap)).toEqual([BYTES / 512 + 1]);
  });

  test("come along to another thread, in place of what the image told", () => {
    const [one, two] = [add(disk, "one"), add(disk, "two", false)];
    one.bits.set(512, 512);
    one.busy = true;
    two.persistent = true;
    two.inconsistent = true;
    const saved = structuredClone(bitmapsOf(disk).save());
    const other = new FakeNode(reactor, disk.bytes);
    add(other, "two");
    bitmapsOf(other).restore(saved);
    expect(dirtyInfosOf(other)).toEqual(dirtyInfosOf(disk));
    expect(dirty(bitmapsOf(other).get("one"))).toEqual([1]);
    expect(() => bitmapsOf(other).get("two").checkUsable()).toThrow(
      "Bitmap 'two' is inconsistent and cannot be used",
    );
  });
});

describe("a read-only bitmap", () => {
  test("may be read and switched, and not changed", () => {
    const bitmap = add(disk, "b");
    bitmap.readOnly = true;
    bitmap.checkUsable();
    const readOnly = "Bitmap 'b' is readonly and cannot be modified";
    expect(() => bitmap.checkWritable()).toThrow(readOnly);
  });
});
