import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_READ,
  NBD_EINVAL,
  NBD_EIO,
} from "../../../../src/abi/nbd.ts";
import { DirtyBitmap } from "../../../../src/bitmaps/dirty-bitmap.ts";
import { STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../../../../src/block/node.ts";
import {
  ALLOCATION_DEPTH,
  BASE_ALLOCATION,
  bitmapContext,
} from "../../../../src/exports/nbd/meta-context.ts";
import { EIO } from "../../../../src/runtime/errno.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { NbdRig } from "../../../support/nbd-rig.ts";
import { concat, u32, u64 } from "../../../support/nbd-wire.ts";

const BYTES = 1024 * 1024;
const contexts = [BASE_ALLOCATION, ALLOCATION_DEPTH];
const flags = NBD_CMD_FLAG_PAYLOAD_LEN;
let rig: NbdRig;
let node: FakeNode;

beforeEach(() => {
  rig = new NbdRig("epoll");
  node = new FakeNode(rig.reactor, BYTES);
  // Data and holes by turns, in pieces of 4096 bytes that the node reports in halves.
  node.status = (offset, bytes, out) => {
    const hole = Math.floor(offset / 4096) % 2 === 1;
    out.flags = STATUS_ALLOCATED | (hole ? STATUS_ZERO : STATUS_DATA);
    out.bytes = Math.min(bytes, 2048 - (offset % 2048));
    out.depth = hole ? 2 : 1;
    return 0;
  };
});
afterEach(() => rig.end());

/** A query for some contexts of a length. */
const query = (bytes: number, ...ids: number[]) => concat(u64(bytes), ...ids.map(u32));

describe("BLOCK_STATUS of dirty bitmaps", () => {
  function bitmap(name: string, granularity: number): DirtyBitmap {
    const more = { bytes: BYTES, persistent: false, enabled: false };
    return new DirtyBitmap({ name, granularity, ...more });
  }

  for (const mode of ["structured", "extended"] as const) {
    test(`tells the marked ranges of the chosen ones with ${mode} replies`, async () => {
      const [one, two] = [bitmap("one", 512), bitmap("two", 4096)];
      one.bits.set(1024, 512);
      two.bits.set(8192, 1);
      rig.bitmaps = [one, two];
      rig.serve(node, { contexts: [bitmapContext(0, "one"), bitmapContext(1, "two")] });
      const peer = rig.peer(mode);
      const reply = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 512, BYTES - 512);
      expect(reply.statuses()).toEqual([
        {
          contextId: 2,
          extents: [
            { length: 512, flags: 0 },
            { length: 512, flags: 1 },
            { length: BYTES - 1536, flags: 0 },
          ],
        },
        {
          contextId: 3,
          extents: [
            { length: 7680, flags: 0 },
            { length: 4096, flags: 1 },
            { length: BYTES - 12288, flags: 0 },
          ],
        },
      ]);
      const options = { flags: NBD_CMD_FLAG_REQ_ONE };
      const first = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 1024, 8192, options);
      expect(first.statuses()[0]?.extents).toEqual([{ length: 512, flags: 1 }]);
    });
  }

  test("ends a reply where it has as many extents as it may", async () => {
    const scattered = bitmap("b", 512);
    const bytes = 2 ** 26;
    scattered.bits.resize(bytes);
    for (let at = 0; at < bytes; at += 1024) scattered.bits.set(at, 512);
    Object.assign(node, { data: { length: bytes } });
    rig.bitmaps = [scattered];
    rig.serve(node, { contexts: [bitmapContext(0, "b")] });
    const reply = await rig.ask(rig.peer("structured"), NBD_CMD_BLOCK_STATUS, 0, bytes);
    const [status] = reply.statuses();
    expect(status!.extents.length).toBeGreaterThan(1000);
    expect(status!.extents.length).toBeLessThan(bytes / 512);
    expect(status!.extents.every(({ length }) => length === 512)).toBe(true);
  });
});

describe("BLOCK_STATUS", () => {
  for (const mode of ["structured", "extended"] as const) {
    test(`merges extents and answers each context once with ${mode} replies`, async () => {
      rig.serve(node, { contexts });
      const reply = await rig.ask(rig.peer(mode), NBD_CMD_BLOCK_STATUS, 1024, 8192);
      expect(reply.statuses()).toEqual([
        {
          contextId: 0,
          extents: [
            { length: 3072, flags: 0 },
            { length: 4096, flags: 3 },
            { length: 1024, flags: 0 },
          ],
        },
        {
          contextId: 1,
          extents: [
            { length: 3072, flags: 1 },
            { length: 4096, flags: 2 },
            { length: 1024, flags: 1 },
          ],
        },
      ]);
      expect(reply.chunks.map(({ done }) => done)).toEqual([false, true]);
    });

    test(`says one extent when asked for one with ${mode} replies`, async () => {
      rig.serve(node, { contexts: [BASE_ALLOCATION] });
      const options = { flags: NBD_CMD_FLAG_REQ_ONE };
      const peer = rig.peer(mode);
      const reply = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, BYTES, options);
      expect(reply.statuses()).toEqual([{ contextId: 0, extents: [{ length: 4096, flags: 0 }] }]);
    });

    test(`is refused with ${mode} replies when no context was agreed on`, async () => {
      rig.serve(node);
      const peer = rig.peer(mode);
      expect((await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, 512)).error).toBe(NBD_EINVAL);
      expect((await rig.ask(peer, NBD_CMD_READ, 0, 512)).error).toBe(0);
    });
  }

  test("answers for the contexts that its payload names", async () => {
    rig.serve(node, { contexts });
    const peer = rig.peer("extended");
    for (const [ids, expected] of [
      [[1], [1]],
      [
        [1, 0],
        [0, 1],
      ],
      [[0, 0], [0]],
    ] as const) {
      const payload = query(512, ...ids);
      const options = { flags, payload };
      const reply = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, payload.length, options);
      expect(reply.statuses().map(({ contextId }) => contextId)).toEqual([...expected]);
    }
  });

  test("refuses a payload that is not valid, and takes all of it", async () => {
    rig.serve(node, { contexts });
    const peer = rig.peer("extended");
    const payloads = [
      new Uint8Array(1),
      new Uint8Array(7),
      query(512),
      query(0, 0),
      query(512, 7),
      query(BYTES + 1, 0),
      query(2 ** 53, 0),
      concat(query(512, 0), new Uint8Array(3)),
      new Uint8Array(4096),
      new Uint8Array(4097),
      new Uint8Array(100_000),
    ];
    for (const payload of payloads) {
      const options = { flags, payload };
      const reply = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, payload.length, options);
      expect([payload.length, reply.error]).toEqual([payload.length, NBD_EINVAL]);
    }
    expect((await rig.ask(peer, NBD_CMD_READ, 0, 512)).error).toBe(0);
  });

  test("refuses a payload where no context was agreed on", async () => {
    rig.serve(node);
    const peer = rig.peer("extended");
    for (const payload of [query(512), query(512, 0), query(512, 0, 1)]) {
      const options = { flags, payload };
      const reply = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, payload.length, options);
      expect(reply.error).toBe(NBD_EINVAL);
    }
    expect((await rig.ask(peer, NBD_CMD_READ, 0, 512)).error).toBe(0);
  });

  test("reports the errno of a node that can't say, also after some of its answer", async () => {
    rig.serve(node, { contexts });
    const peer = rig.peer("structured");
    let calls = 0;
    const status = node.status;
    node.status = (...args) => (++calls > 5 ? Promise.resolve(-EIO) : status(...args));
    const reply = await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, 8192);
    expect([reply.error, reply.message]).toEqual([NBD_EIO, "can't get block status"]);
    expect(reply.chunks.length).toBe(2);
    const read = await rig.ask(peer, NBD_CMD_READ, 0, 8192);
    expect([read.error, read.message]).toEqual([NBD_EIO, "reading from file failed"]);
  });

  test("does not keep a client's end waiting for the end of a long search", async () => {
    node.status = (_offset, _bytes, out) => {
      out.flags = STATUS_DATA;
      out.bytes = 1;
      return 0;
    };
    rig.serve(node, { contexts });
    const peer = rig.peer("structured");
    peer.request(NBD_CMD_BLOCK_STATUS, 0, BYTES);
    await rig.settle(5);
    peer.close();
    await rig.settle(30);
    expect(rig.exp.connectionCount).toBe(0);
  });
});
