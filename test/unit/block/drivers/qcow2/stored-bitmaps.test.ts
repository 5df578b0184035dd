import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as abi from "../../../../../src/abi/qcow2.ts";
import { DirtyBitmap } from "../../../../../src/bitmaps/dirty-bitmap.ts";
import { bitmapsOf, dirtyInfosOf } from "../../../../../src/bitmaps/node-bitmaps.ts";
import { file } from "../../../../../src/block/drivers/file/index.ts";
import { qcow2 } from "../../../../../src/block/drivers/qcow2/index.ts";
import {
  type BlockNode,
  OP_FLUSH,
  OP_WRITE,
  PERM_ALL,
  SLOW,
} from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { EIO } from "../../../../../src/runtime/errno.ts";
import { openContext, Payload } from "../../../../support/block.ts";
import { messageOf } from "../../../../support/iothread.ts";
import { emptyImage } from "../../../../support/qcow2-header.ts";
import {
  checkImage,
  describeCorruptions,
  memorySource,
  Qcow2Image,
} from "../../../../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 65536;
const GRANULARITY = 4096;
const DISK_BYTES = 4 * 1024 * 1024;

function smallImage(): Uint8Array {
  const bytes = emptyImage();
  new DataView(bytes.buffer).setUint32(abi.HEADER_SIZE + 4, DISK_BYTES);
  return bytes;
}

describe("stored bitmaps", () => {
  let folder: string;
  let path: string;
  let reactor: Reactor;
  let image: OpenedImage;
  let payload: Payload;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "outport-qcow2-"));
    path = join(folder, "image.qcow2");
    writeFileSync(path, smallImage());
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

  async function add(name: string, more: object = {}): Promise<DirtyBitmap> {
    const { node } = image;
    await node.checkNewBitmap!(name, GRANULARITY);
    const common = { granularity: GRANULARITY, persistent: true, enabled: true };
    const bitmap = new DirtyBitmap({ name, bytes: node.bytes, ...common, ...more });
    bitmapsOf(node).add(bitmap);
    return bitmap;
  }

  const write = (offset: number, bytes = 512) =>
    runOn(reactor, () => image.backend.request(OP_WRITE, offset, bytes, payload.address, 0));
  const find = (name: string) => bitmapsOf(image.node).get(name);
  const names = () => bitmapsOf(image.node).list.map((bitmap) => bitmap.name);

  async function reopen(more: object = {}): Promise<void> {
    await image.close();
    image = await openQcow2(reactor, { path, ...more });
  }

  /** By the independent reader, which finds nothing wrong. */
  function onDisk(): Qcow2Image {
    const read = new Qcow2Image({ source: memorySource(new Uint8Array(readFileSync(path))) });
    expect(describeCorruptions(checkImage(read))).toBe("");
    return read;
  }

  async function change(edit: (view: DataView, bytes: Uint8Array) => void): Promise<void> {
    await image.close();
    const bytes = new Uint8Array(readFileSync(path));
    edit(new DataView(bytes.buffer), bytes);
    writeFileSync(path, bytes);
    image = await openQcow2(reactor, { path });
  }

  test("hold what was written, and are found again", async () => {
    await add("b");
    await add("off", { enabled: false });
    for (const offset of [0, 5 * GRANULARITY, DISK_BYTES - 512]) await write(offset);
    const before = dirtyInfosOf(image.node);
    const sha256 = find("b").sha256();
    await image.close();
    const stored = onDisk();
    expect(checkImage(stored).leaks).toEqual([]);
    const entries = new Map(stored.bitmaps.map((one) => [one.name, one]));
    expect(entries.get("b")).toMatchObject({ auto: true, inUse: false });
    expect(entries.get("off")).toMatchObject({ auto: false, inUse: false });
    const bits = stored.bitmapBits(entries.get("b")!);
    expect([bits[0], bits.at(-1)]).toEqual([0b10_0001, 0x80]);
    image = await openQcow2(reactor, { path });
    expect(new Set(dirtyInfosOf(image.node))).toEqual(new Set(before));
    expect(find("b").sha256()).toBe(sha256);
  });

  test("are in use on the disk from opening to closing", async () => {
    await add("b");
    await reopen();
    expect(onDisk().bitmaps).toMatchObject([{ name: "b", inUse: true }]);
    await write(0);
    await image.close();
    expect(onDisk().bitmaps).toMatchObject([{ name: "b", inUse: false }]);
    image = await openQcow2(reactor, { path });
  });

  test("are inconsistent after a crash, until they are removed", async () => {
    await add("b");
    await reopen();
    await write(0);
    const crashed = join(folder, "crashed.qcow2");
    copyFileSync(path, crashed);
    await image.close();
    copyFileSync(crashed, path);
    image = await openQcow2(reactor, { path });
    expect(dirtyInfosOf(image.node)).toMatchObject([{ inconsistent: true, recording: false }]);
    await reopen();
    expect(find("b").inconsistent).toBe(true);
    await runOn(reactor, () => image.node.removeStoredBitmap!("b"));
    bitmapsOf(image.node).remove(find("b"));
    expect(onDisk().header.bitmapDirectory).toBeNull();
    await reopen();
    expect(names()).toEqual([]);
    await image.close();
    expect(checkImage(onDisk()).leaks).toEqual([]);
    image = await openQcow2(reactor, { path });
  });

  test("can't be changed in an image that is only read, and stay as they are", async () => {
    await add("b");
    await write(0);
    await reopen({ readOnly: true });
    expect(() => find("b").checkWritable()).toThrow("Bitmap 'b' is readonly and cannot be");
    expect(find("b").bits.dirtyBytes).toBe(GRANULARITY);
    await reopen({ readOnly: true });
    expect(onDisk().bitmaps).toMatchObject([{ name: "b", inUse: false }]);
    await reopen();
  });

  test("stay when others come and go", async () => {
    for (let round = 0; round < 6; round++) {
      await add(`b${round}`);
      await write(round * CLUSTER);
      if (round % 2 === 1) {
        const name = `b${round - 1}`;
        await runOn(reactor, () => image.node.removeStoredBitmap!(name));
        bitmapsOf(image.node).remove(find(name));
      }
      await reopen();
    }
    expect(names().sort()).toEqual(["b1", "b3", "b5"]);
    expect(find("b1").bits.dirtyBytes).toBe(5 * GRANULARITY);
    await image.close();
    expect(checkImage(onDisk()).leaks).toEqual([]);
    image = await openQcow2(reactor, { path });
  });

  test("are lost when someone wrote who does not know them", async () => {
    await add("b");
    await change((view) => view.setUint32(abi.HEADER_AUTOCLEAR_FEATURES + 4, 0));
    expect(names()).toEqual([]);
    expect(onDisk().header.bitmapDirectory).toBeNull();
    await add("b");
    await reopen();
    expect(names()).toEqual(["b"]);
  });

  test("are stored where the extension crosses sectors, and where others follow it", async () => {
    const unknown = abi.HEADER_LENGTH_KNOWN;
    for (const bytes of [376, 368, 360, 352, 344, 0]) {
      await change((view, all) => {
        all.set(smallImage());
        view.setUint32(unknown, 0x12345678);
        view.setUint32(unknown + 4, bytes);
      });
      for (const name of ["a", "b", "c"]) {
        await add(name);
        await reopen();
      }
      expect(names().sort()).toEqual(["a", "b", "c"]);
      for (const name of names()) {
        await runOn(reactor, () => image.node.removeStoredBitmap!(name));
        bitmapsOf(image.node).remove(find(name));
        onDisk();
      }
      await reopen();
      expect(names()).toEqual([]);
    }
  });

  test("that are not where they should be are inconsistent, and cost nothing", async () => {
    await add("b");
    await write(0);
    for (const place of [0x30000, 2 ** 40, 2 ** 50]) {
      await change((view, bytes) => {
        const { bitmaps, header } = new Qcow2Image({ source: memorySource(bytes) });
        view.setUint32(header.bitmapDirectory!.offset + abi.BITMAP_FLAGS, abi.BME_FLAG_AUTO);
        view.setBigUint64(bitmaps[0]!.table.offset, BigInt(place));
      });
      expect(dirtyInfosOf(image.node)).toMatchObject([{ inconsistent: true, recording: false }]);
    }
    await runOn(reactor, () => image.node.removeStoredBitmap!("b"));
    bitmapsOf(image.node).remove(find("b"));
    await image.close();
    onDisk();
    image = await openQcow2(reactor, { path });
  });

  describe("of a node that is reopened", () => {
    const permissions = { used: PERM_ALL, shared: PERM_ALL };
    let fileNode: BlockNode;

    const contextOf = (readOnly: boolean) =>
      openContext(reactor, { children: { file: fileNode }, readOnly });
    const open = (readOnly: boolean) =>
      runOn(reactor, () => qcow2.open(contextOf(readOnly)) as Promise<BlockNode>);
    const reopenAs = (node: BlockNode, readOnly: boolean) =>
      runOn(reactor, async () => {
        await node.settle!(readOnly ? "read-only" : null);
        return node.reopen!(contextOf(readOnly), permissions);
      });
    const isInUse = () => onDisk().bitmaps.map(({ inUse }) => inUse);

    beforeEach(async () => {
      await add("b");
      await image.close();
      fileNode = await runOn(reactor, async () => {
        const node = await file.open(openContext(reactor, { options: { filename: path } }));
        await node.setPermissions(PERM_ALL, PERM_ALL);
        return node;
      });
    });

    afterEach(async () => {
      await runOn(reactor, () => fileNode.close());
      image = await openQcow2(reactor, { path });
    });

    test("go on recording when that is taken back", async () => {
      const node = await open(false);
      const handle = await reopenAs(node, true);
      expect([isInUse(), bitmapsOf(node).get("b").readOnly]).toEqual([[false], true]);
      await runOn(reactor, async () => {
        await handle.undo();
        await node.unsettle!();
      });
      expect([isInUse(), bitmapsOf(node).get("b").readOnly]).toEqual([[true], false]);
      await runOn(reactor, () => node.write(0, 512, payload.address, 0));
      await runOn(reactor, () => node.close());
      expect(isInUse()).toEqual([false]);
      const again = await open(true);
      expect(bitmapsOf(again).get("b").bits.dirtyBytes).toBe(GRANULARITY);
      await runOn(reactor, () => again.close());
    });

    test("are as before when it was to be written to, and is not", async () => {
      const node = await open(true);
      const handle = await reopenAs(node, false);
      expect([isInUse(), bitmapsOf(node).get("b").readOnly]).toEqual([[true], false]);
      await runOn(reactor, async () => handle.undo());
      expect([isInUse(), bitmapsOf(node).get("b").readOnly]).toEqual([[false], true]);
      await runOn(reactor, () => node.close());
    });

    test("are another process's when it is handed over, until it comes back", async () => {
      const node = await open(false);
      await runOn(reactor, () => node.write(0, 512, payload.address, 0));
      await runOn(reactor, () => node.settle!("handover"));
      expect([isInUse(), bitmapsOf(node).list]).toEqual([[false], []]);
      await runOn(reactor, () => node.invalidate!());
      expect(isInUse()).toEqual([true]);
      expect(bitmapsOf(node).get("b").bits.dirtyBytes).toBe(GRANULARITY);
      await runOn(reactor, () => node.close());
    });

    test("stay another process's when a node that was handed over is closed", async () => {
      const node = await open(false);
      await runOn(reactor, () => node.settle!("handover"));
      const grown = Buffer.concat([readFileSync(path), new Uint8Array(CLUSTER).fill(1)]);
      writeFileSync(path, grown);
      fileNode.refreshLength!();
      await runOn(reactor, () => node.close());
      expect(Buffer.compare(readFileSync(path), grown)).toBe(0);
    });

    test("stay where they are when the image can't name another backing file", async () => {
      const unknown = abi.HEADER_LENGTH_KNOWN;
      const bytes = smallImage();
      new DataView(bytes.buffer).setUint32(unknown, 0x12345678);
      // They come right behind the first sector.
      new DataView(bytes.buffer).setUint32(unknown + 4, 384);
      writeFileSync(path, bytes);
      fileNode.refreshLength!();
      const node = await open(false);
      const options = { name: "b", bytes: node.bytes, granularity: GRANULARITY };
      bitmapsOf(node).add(new DirtyBitmap({ ...options, persistent: true, enabled: true }));
      await runOn(reactor, async () => {
        await node.settle!("read-only");
        await node.unsettle!();
      });
      const { resolve, write: writeFile } = fileNode;
      fileNode.resolve = (op, offset, length, out) => {
        return op === OP_WRITE && offset === 0
          ? SLOW
          : resolve.call(fileNode, op, offset, length, out);
      };
      fileNode.write = async () => -EIO;
      const changed = runOn(reactor, () => node.changeBackingFile!("base", "raw"));
      expect(await changed).toBe(-EIO);
      Object.assign(fileNode, { resolve, write: writeFile });
      expect(isInUse()).toEqual([true]);
      await runOn(reactor, () => node.close());
      expect(isInUse()).toEqual([false]);
    });

    test("are in use when the disk can't say that they are stored", async () => {
      writeFileSync(path, smallImage());
      fileNode.refreshLength!();
      const node = await open(false);
      const options = { name: "b", bytes: node.bytes, granularity: GRANULARITY };
      bitmapsOf(node).add(new DirtyBitmap({ ...options, persistent: true, enabled: true }));
      const { resolve, flush } = fileNode;
      const flushes: number[] = [];
      fileNode.resolve = (op, offset, bytes, out) => {
        if (op === OP_FLUSH) return SLOW;
        // That the bitmaps count: the first time it can't be told whether that is on the disk.
        const tells = op === OP_WRITE && offset === abi.HEADER_AUTOCLEAR_FEATURES;
        if (tells && flushes.length === 0) flushes.push(-EIO);
        return resolve.call(fileNode, op, offset, bytes, out);
      };
      fileNode.flush = async () => {
        if (flushes.at(-1) !== -EIO) return flush.call(fileNode);
        flushes.push(0);
        return -EIO;
      };
      const settled = runOn(reactor, () => node.settle!("read-only"));
      expect(await messageOf(settled)).toBe(
        "Failed to update bitmap extension: Input/output error",
      );
      expect(isInUse()).toEqual([true]);
      await runOn(reactor, () => node.write(0, 512, payload.address, 0));
      await runOn(reactor, () => node.close());
      expect(isInUse()).toEqual([false]);
    });
  });

  test("of an empty disk are lost, and leave the image as it was", async () => {
    await add("b");
    await reopen();
    await runOn(reactor, () => image.node.truncate!(0));
    find("b").bits.resize(0);
    await image.close();
    expect(onDisk().bitmaps).toMatchObject([{ name: "b", inUse: true }]);
    image = await openQcow2(reactor, { path });
    expect(find("b").inconsistent).toBe(true);
  });

  test("of more bits than anybody has memory for are not loaded", async () => {
    await runOn(reactor, () => image.node.truncate!(2 ** 41));
    for (let i = 0; i < 65; i++) await add(`b${i}`, { granularity: 512 });
    await image.close();
    const opening = openQcow2(reactor, { path });
    expect(await messageOf(opening)).toBe("The bitmaps are too large to be loaded");
    expect(onDisk().bitmaps.every(({ inUse }) => !inUse)).toBe(true);
    writeFileSync(path, smallImage());
    image = await openQcow2(reactor, { path });
  });

  test("are refused where they have no room, in QSD's words", async () => {
    const check = (name: string, granularity: number) =>
      messageOf(image.node.checkNewBitmap!(name, granularity));
    const what = "Can't make bitmap 'b' persistent in 'node0': ";
    await add("a");
    expect(await check("a", GRANULARITY)).toBe("Bitmap already exists: a");
    await runOn(reactor, () => image.node.truncate!(16 * 2 ** 40));
    expect(await check("b", 512)).toBe(
      `${what}Too much space will be occupied by the bitmap. Use larger granularity`,
    );
    expect(await check("x".repeat(1024), GRANULARITY)).toContain(
      "Name length exceeds maximum (1023 characters)",
    );
    await image.close();
    writeFileSync(path, smallImage());
    image = await openQcow2(reactor, { path });
    await change((view) => view.setUint32(abi.HEADER_VERSION, 2));
    expect(await check("b", GRANULARITY)).toBe(
      `${what}Cannot store dirty bitmaps in qcow2 v2 files`,
    );
  });
});
