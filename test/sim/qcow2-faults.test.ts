/** qcow2 on a disk that fails once, at each of its operations in turn, and on one that is full. */
import { afterAll, describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { BlockBackend } from "../../src/block/backend.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import { type BlockNode, OP_FLUSH, OP_READ, OP_WRITE } from "../../src/block/node.ts";
import { EIO, ENOSPC } from "../../src/runtime/errno.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import { driver } from "../support/driver.ts";
import { temporaryDirectory } from "../support/images.ts";
import { Random } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import { SimDisk } from "./disk.ts";
import { SimDiskNode } from "./disk-node.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

const reactor = makeReactor("epoll");
/** Of one request. */
const PART_BYTES = 64 * 1024;

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

async function imageOf(create: string, size: string, snapshot = false): Promise<Uint8Array> {
  await using folder = await temporaryDirectory();
  const path = folder.file("image.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, size]);
  if (snapshot) await run("qemu-img", ["snapshot", "-c", "before", path]);
  return new Uint8Array(await readFile(path));
}

/** Both the reactor and the disk go on until the task has ended. */
async function drive<Result>(disk: SimDisk, task: () => Promise<Result>): Promise<Result> {
  let ended = false;
  const promise = task();
  const end = (): void => {
    ended = true;
  };
  promise.then(end, end);
  while (!ended) {
    await driver.runMicrotasks();
    if (!ended && !disk.step()) reactor.turn(0);
  }
  return promise;
}

interface Guest {
  ask(op: 0 | 1 | 2, offset: number, bytes: number, fill?: number): Promise<number>;
  readonly u8: Uint8Array;
  close(): Promise<void>;
}

async function guestOn(file: BlockNode): Promise<Guest> {
  const node = await qcow2.open(openContext(reactor, { children: { file }, discardUnmap: true }));
  const backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
  const at = await reactor.allocate(PART_BYTES);
  const u8 = reactor.memory.u8.subarray(at, at + PART_BYTES);
  return {
    u8,
    ask(op, offset, bytes, fill = 0) {
      u8.fill(fill);
      return backend.request(op, offset, bytes, reactor.memory.address + at, 0);
    },
    async close() {
      reactor.buffers.free(at);
      await backend.close();
      await node.close();
    },
  };
}

describe("a failing disk", () => {
  test("leaves the image sound when the refcount table can't grow", async () => {
    const create = "cluster_size=512,refcount_bits=64,preallocation=metadata";
    const image = await imageOf(create, "1900k", true);
    const { check, bytes, read } = qcow2Subject({ image, open: async () => null as never });
    let failures = 0;
    // Of the last operations, as the table grows near the end of what it has room for.
    for (let failing = 0; failing < 90; failing++) {
      const disk = new SimDisk(new Random(failing), image);
      const guest = await drive(disk, () => guestOn(new SimDiskNode(reactor, disk)));
      let writes = 0;
      const tableEnd = 4096 * 512;
      disk.fails = (what) => {
        // From when the file must be longer than the old table can count.
        if (what === "read" || disk.bytes <= tableEnd) return 0;
        return writes++ === failing ? -EIO : 0;
      };
      for (let at = 0; at < bytes; at += PART_BYTES) {
        const part = Math.min(PART_BYTES, bytes - at);
        const write = () => guest.ask(OP_WRITE, at, part, 1 + at / PART_BYTES);
        if ((await drive(disk, write)) < 0) {
          failures++;
          expect(await drive(disk, write)).toBe(0);
        }
        if ((await drive(disk, () => guest.ask(OP_FLUSH, 0, 0))) < 0) failures++;
      }
      await drive(disk, () => guest.close());
      const content = disk.content();
      expect(check(content, false)).toBe("");
      const seen = read!(content);
      for (let at = 0; at < bytes; at += 512) {
        if (seen[at] !== 1 + Math.floor(at / PART_BYTES)) throw new Error(`lost at ${at}`);
      }
    }
    expect(failures > 20).toBe(true);
  }, 180_000);

  test("flushes what there was room for when it is full", async () => {
    // A refcount block counts 64 clusters: the next one is what there is no room for.
    const image = await imageOf("cluster_size=512,refcount_bits=64", "256k");
    const disk = new SimDisk(new Random(1), image);
    const node = new SimDiskNode(reactor, disk);
    const full = 32 * 1024;
    node.truncate = async (bytes) => {
      const { OutportError } = await import("../../src/util/error.ts");
      if (bytes > full) throw new OutportError("io", "full");
      await disk.setLength(bytes);
    };
    const write = node.write.bind(node);
    node.write = async (offset, bytes, address) =>
      offset + bytes > full ? -ENOSPC : write(offset, bytes, address);
    const guest = await drive(disk, () => guestOn(node));
    const results: number[] = [];
    for (let at = 0; at < 64 * 1024; at += 512) {
      results.push(await drive(disk, () => guest.ask(OP_WRITE, at, 512, 1 + ((at / 512) % 255))));
    }
    expect(results.at(-1)).toBe(-ENOSPC);
    expect(await drive(disk, () => guest.ask(OP_FLUSH, 0, 0))).toBe(0);
    await drive(disk, () => guest.close());
    const { check, read } = qcow2Subject({ image, open: async () => null as never });
    expect(check(disk.content(), false)).toBe("");
    const seen = read!(disk.content());
    for (const [i, result] of results.entries()) {
      if (result === 0) expect(seen[i * 512]).toBe(1 + (i % 255));
    }
  });

  test("keeps what was written behind the end of the file it found", async () => {
    const whole = await imageOf("cluster_size=4096,preallocation=metadata", "1M");
    // The host's file lost a tail of zeroes.
    const image = whole.slice(0, 512 * 1024);
    const disk = new SimDisk(new Random(1), image);
    const guest = await drive(disk, () => guestOn(new SimDiskNode(reactor, disk)));
    const last = 1024 * 1024 - 4096;
    // The first makes the file longer, by more than is needed.
    expect(await drive(disk, () => guest.ask(OP_WRITE, 520 * 1024, 4096, 5))).toBe(0);
    expect(await drive(disk, () => guest.ask(OP_WRITE, last, 4096, 7))).toBe(0);
    await drive(disk, () => guest.close());
    const again = new SimDisk(new Random(1), disk.content());
    const other = await drive(again, () => guestOn(new SimDiskNode(reactor, again)));
    expect(await drive(again, () => other.ask(OP_READ, last, 4096))).toBe(0);
    expect(other.u8[0]).toBe(7);
    await drive(again, () => other.close());
  });
});
