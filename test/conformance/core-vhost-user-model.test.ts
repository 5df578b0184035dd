/**
 * Thousands of random concurrent requests of a guest leave exactly the bytes that a byte array
 * predicts.
 */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync, readFileSync } from "node:fs";
import * as vu from "../../src/abi/vhost-user.ts";
import { VIRTIO_F_RING_PACKED } from "../../src/abi/virtio-ring.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { run } from "../support/clients.ts";
import { driver } from "../support/driver.ts";
import { assertSameBytes, MiB, patternImage, temporaryDirectory } from "../support/images.ts";
import { sleep, startDaemon } from "../support/process.ts";
import { randomSeed } from "../support/random.ts";
import {
  ClientQueue,
  connectTo,
  memoryTable,
  negotiate,
  VhostUserClient,
} from "../support/vhost-user-client.ts";
import { GuestRam, makeDriver } from "../support/virtio-driver.ts";
import { VirtioDiskModel } from "./virtio-disk-model.ts";

setDefaultTimeout(180_000);

const REQUESTS = 5_000;
const DEPTH = 8;
const SIZE = 256;
const BYTES = 4 * MiB;
const PACKED_BASE = 0x8000_8000;

const linux = new Linux(driver.ffi, driver.arch);
const seedBase = randomSeed();

interface Case {
  readonly title: string;
  /** Of the node and of the export. */
  readonly node?: string;
  readonly more: string;
  readonly queueCount: number;
  readonly packed?: boolean;
  readonly blockBytes?: number;
  readonly writable?: boolean;
  /** Its node moves from thread to thread meanwhile. */
  readonly moves?: boolean;
  /** Overlays come to stand on its node meanwhile. */
  readonly overlays?: boolean;
}

const CASES: readonly Case[] = [
  { title: "on one split ring", more: "writable=on", queueCount: 1 },
  { title: "on four packed rings", more: "writable=on,num-queues=4", queueCount: 4, packed: true },
  {
    title: "with blocks of 4096 bytes and the page cache off",
    node: ",cache.direct=on",
    more: "writable=on,num-queues=4,logical-block-size=4096",
    queueCount: 4,
    blockBytes: 4096,
  },
  {
    title: "with writethrough=on, in pieces that are no blocks of a direct file",
    node: ",cache.direct=on",
    more: "writable=on,writethrough=on",
    queueCount: 1,
    packed: true,
  },
  ...[false, true].map((packed) => ({
    title: `on ${packed ? "packed" : "split"} rings, from thread to thread`,
    more: "writable=on,num-queues=4",
    queueCount: 4,
    packed,
    moves: true,
  })),
  {
    title: "under which overlays take the place of the disk",
    more: "writable=on,num-queues=2",
    queueCount: 2,
    overlays: true,
  },
  { title: "on a disk that is not writable", more: "num-queues=2", queueCount: 2, writable: false },
];

describe("random requests of a guest", () => {
  for (const [index, one] of CASES.entries()) {
    const { packed = false, blockBytes = 512, writable = true } = one;
    test(one.title, async () => {
      const seed = seedBase + index;
      await using directory = await temporaryDirectory();
      const image = directory.file("disk.raw");
      const socket = directory.file("vhost.sock");
      const content = await patternImage(image, BYTES);
      const node = `driver=file,node-name=disk,filename=${image},discard=unmap${one.node ?? ""}`;
      const address = `addr.type=unix,addr.path=${socket}`;
      await using running = await startDaemon(directory.path, [
        ...["--object", "iothread,id=io0"],
        ...["--blockdev", node],
        ...["--export", `type=vhost-user-blk,id=e,node-name=disk,${address},${one.more}`],
      ]);
      const ram = new GuestRam(linux, 16 * MiB);
      const pause = () => sleep(0);
      const client = new VhostUserClient({ linux, fd: connectTo(linux, socket), pause });
      await negotiate(client, packed ? ~0n : ~(1n << BigInt(VIRTIO_F_RING_PACKED)));
      await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([ram.region()]), [ram.fd]);
      const queues: ClientQueue[] = [];
      for (let i = 0; i < one.queueCount; i++) {
        const queue = makeDriver(ram, packed, { size: SIZE, eventIdx: true });
        queues.push(new ClientQueue(client, ram, queue, { index: i, size: SIZE }));
        await queues[i]!.start(packed ? PACKED_BASE : 0);
      }
      const options = { ram, queues, depth: DEPTH, blockBytes, content, writable, seed };
      const model = new VirtioDiskModel(options);
      let isDone = false;
      const move = async () => {
        let count = 0;
        for (; one.moves === true && !isDone; count++) {
          const iothread = count % 2 === 0 ? "io0" : null;
          const place = { "node-name": "disk", iothread, force: true };
          await running.qmp.execute("x-blockdev-set-iothread", place);
        }
        return count;
      };
      const moved = move();
      let top = "disk";
      const stack = async () => {
        for (let i = 0; one.overlays === true && i < 12 && !isDone; i++) {
          const name = `o${i}`;
          await running.qmp.execute("blockdev-snapshot-sync", {
            "node-name": top,
            "snapshot-file": directory.file(name),
            "snapshot-node-name": name,
          });
          top = name;
        }
      };
      const stacked = stack();
      await model.run(REQUESTS, pause).finally(() => {
        isDone = true;
      });
      expect((await moved) > 5).toBe(one.moves === true);
      await stacked;
      expect(top !== "disk").toBe(one.overlays === true);
      for (const queue of queues) await queue.stop();
      await running.daemon.stop(); // What it did not have to flush is in its caches until then.
      const result = directory.file("result.raw");
      if (top === "disk") copyFileSync(image, result);
      else await run("qemu-img", ["convert", "-O", "raw", directory.file(top), result]);
      assertSameBytes(readFileSync(result), model.content, `seed ${seed}: the image`);
      expect(model.counts.size).toBe(8);
      client.close();
      for (const queue of queues) queue.close();
      ram.close();
    });
  }
});
