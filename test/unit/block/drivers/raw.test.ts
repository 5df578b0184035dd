import { describe, expect, test } from "bun:test";
import { nullCo } from "../../../../src/block/drivers/null.ts";
import { raw } from "../../../../src/block/drivers/raw.ts";
import {
  type BlockNode,
  MAPPED,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  PERM_ALL,
  PERM_RESIZE,
  PERM_WRITE,
  REQ_MAY_UNMAP,
  type Resolution,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../../../src/block/node.ts";
import { ENOSPC } from "../../../../src/runtime/errno.ts";
import { extentsOf, openContext, Payload } from "../../../support/block.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const out: Resolution = { fd: -1, offset: 0, bytes: 0 };

/** A child that notes what it is asked: everything maps, everything is data. */
class RecordingNode {
  readonly driver = "file";
  readonly nodeName = "child";
  readonly limits;
  readonly calls: unknown[][] = [];
  readonly writable = true;
  bytes: number;
  actualBytes: number | undefined = 512;

  constructor(bytes: number, requestAlignment = 1) {
    this.bytes = bytes;
    this.limits = {
      requestAlignment,
      memoryAlignment: 1,
      transferBytesMax: 1e6,
      discardAlignment: 1,
    };
  }

  resolve(op: Op, offset: number, bytes: number, to: Resolution) {
    this.calls.push(["resolve", op, offset, bytes]);
    to.fd = 7;
    to.offset = offset;
    to.bytes = bytes;
    return MAPPED;
  }

  async write(...args: unknown[]) {
    this.calls.push(["write", ...args]);
    return 0;
  }

  async writeZeroes(...args: unknown[]) {
    this.calls.push(["writeZeroes", ...args]);
    return 0;
  }

  async discard(...args: unknown[]) {
    this.calls.push(["discard", ...args]);
    return 0;
  }

  blockStatus(offset: number, bytes: number, to: { flags: number; bytes: number; depth: number }) {
    this.calls.push(["blockStatus", offset, bytes]);
    to.flags = STATUS_DATA | STATUS_ALLOCATED;
    to.bytes = bytes;
    to.depth = 1;
    return 0;
  }

  isKnownData(offset: number, bytes: number) {
    this.calls.push(["isKnownData", offset, bytes]);
    return true;
  }

  describe() {
    return this.actualBytes === undefined ? {} : { actualBytes: this.actualBytes };
  }

  async truncate(bytes: number) {
    this.calls.push(["truncate", bytes]);
    this.bytes = bytes;
  }
}

function open(
  child: RecordingNode,
  options: Record<string, unknown> = {},
  some: Parameters<typeof openContext>[1] = {},
) {
  const children = { file: child as unknown as BlockNode };
  return raw.open(openContext(reactor, { options, children, ...some }));
}

describe("raw", () => {
  test("is its child, without a window", async () => {
    const child = new RecordingNode(8192);
    const node = await open(child);
    expect(node.bytes).toBe(8192);
    expect(node.resolve(OP_WRITE, 512, 1024, out)).toBe(MAPPED);
    expect(out).toEqual({ fd: 7, offset: 512, bytes: 1024 });
  });

  test("takes the space that its child takes, if that is known", async () => {
    const child = new RecordingNode(8192);
    const node = await open(child);
    expect(node.describe()).toEqual({ actualBytes: 512 });
    child.actualBytes = undefined;
    expect(node.describe()).toEqual({});
  });

  test("adds its offset to everything", async () => {
    const child = new RecordingNode(8192);
    const node = await open(child, { offset: 1024, size: 2048 }, { discardUnmap: true });
    expect(node.bytes).toBe(2048);
    node.resolve(OP_READ, 512, 512, out);
    node.resolve(OP_FLUSH, 0, 0, out);
    node.isKnownData(0, 2048);
    await extentsOf(reactor, node, 0, 2048);
    await runOn(reactor, () => node.write(0, 512, 4096, 0));
    await runOn(reactor, () => node.writeZeroes(512, 512, REQ_MAY_UNMAP));
    await runOn(reactor, () => node.discard(1024, 512));
    expect(child.calls).toEqual([
      ["resolve", OP_READ, 1536, 512],
      ["resolve", OP_FLUSH, 0, 0],
      ["isKnownData", 1024, 2048],
      ["blockStatus", 1024, 2048],
      ["write", 1024, 512, 4096, 0],
      ["writeZeroes", 1536, 512, REQ_MAY_UNMAP],
      ["discard", 2048, 512],
    ]);
  });

  test("discards whole blocks of its child", async () => {
    const child = new RecordingNode(16_384);
    child.limits.discardAlignment = 4096;
    const node = await open(child, { offset: 512 }, { discardUnmap: true });
    expect(await runOn(reactor, () => node.discard(0, 8192))).toBe(0);
    expect(child.calls).toEqual([["discard", 4096, 4096]]);
  });

  test("ignores discard and unmapping unless its own discard is unmap", async () => {
    const child = new RecordingNode(8192);
    const node = await open(child);
    expect(node.resolve(OP_DISCARD, 0, 512, out)).toBe(ZERO);
    await runOn(reactor, () => node.discard(0, 512));
    await runOn(reactor, () => node.writeZeroes(0, 512, REQ_MAY_UNMAP));
    expect(child.calls).toEqual([["writeZeroes", 0, 512, 0]]);
  });

  test("detects zeroes by itself", async () => {
    const child = new RecordingNode(8192);
    const some = { detectZeroes: "unmap", discardUnmap: true } as const;
    const node = await open(child, {}, some);
    expect(node.resolve(OP_WRITE, 0, 512, out)).toBe(SLOW);
    const payload = new Payload(reactor, 512);
    payload.u8.fill(0);
    await runOn(reactor, () => node.write(512, 512, payload.address, 0));
    payload.u8[511] = 1;
    await runOn(reactor, () => node.write(512, 512, payload.address, 0));
    expect(child.calls).toEqual([
      ["writeZeroes", 512, 512, REQ_MAY_UNMAP],
      ["write", 512, 512, payload.address, 0],
    ]);
  });

  test("reads zeroes and writes nothing where its last sector has no child", async () => {
    const child = new RecordingNode(1024);
    const node = await open(child, { offset: 1 });
    expect(node.bytes).toBe(1024);
    expect(node.resolve(OP_READ, 512, 512, out)).toBe(MAPPED);
    expect(out).toEqual({ fd: 7, offset: 513, bytes: 511 });
    expect(node.resolve(OP_READ, 1023, 1, out)).toBe(ZERO);
    expect(node.resolve(OP_WRITE, 512, 512, out)).toBe(SLOW);
    expect(node.resolve(OP_WRITE_ZEROES, 512, 512, out)).toBe(SLOW);
    expect(await runOn(reactor, () => node.write(512, 512, 0, 0))).toBe(-ENOSPC);
    expect(await runOn(reactor, () => node.writeZeroes(512, 512, 0))).toBe(-ENOSPC);
    expect(node.isKnownData(512, 512)).toBe(false);
    expect(await extentsOf(reactor, node, 0, 1024)).toEqual([
      [STATUS_DATA | STATUS_ALLOCATED, 1023],
      [STATUS_ZERO | STATUS_ALLOCATED, 1],
    ]);
  });

  test("refuses windows that don't fit, in QSD's words", async () => {
    const child = new RecordingNode(1048576);
    const cases: [Record<string, unknown>, string][] = [
      [
        { offset: 2097152 },
        "Offset (2097152) cannot be greater than size of the containing file (1048576)",
      ],
      [
        { offset: 512, size: 1048576 },
        "The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual " +
          "size of the containing file (1048576)",
      ],
      [{ size: 1000 }, "Specified size is not multiple of 512"],
      [{ size: -512 }, "Value '-512' is out of range for parameter 'size'"],
      [{ offset: -1 }, "Value '-1' is out of range for parameter 'offset'"],
    ];
    for (const [options, message] of cases) {
      await expect(open(child, options)).rejects.toThrow(message);
    }
    expect((await open(child, { offset: 1048576 })).bytes).toBe(0);
    expect((await open(child, { size: 0 })).bytes).toBe(0);
  });

  test("keeps to what its child asks of requests", async () => {
    const child = new RecordingNode(8192, 4096);
    await expect(open(child, { offset: 512 })).rejects.toThrow("not a multiple of the request");
    const node = await open(child, { offset: 4096, size: 512 });
    expect(node.limits.requestAlignment).toBe(4096);
    await expect(node.setPermissions(PERM_WRITE, PERM_ALL)).rejects.toThrow(
      "Cannot get 'write' permission without 'resize': Image size is not a multiple of request " +
        "alignment",
    );
  });

  test("childPermissions() hands on, and keeps the length of a window", () => {
    const of = { used: PERM_WRITE, shared: PERM_ALL };
    expect(raw.childPermissions!("file", of, {}, true)).toEqual(of);
    for (const options of [{ offset: 512 }, { size: 512 }, { size: 0 }]) {
      expect(raw.childPermissions!("file", of, options, true)).toEqual({
        used: PERM_WRITE,
        shared: PERM_ALL & ~PERM_RESIZE,
      });
    }
  });

  test("stands on any child", async () => {
    const child = await nullCo.open(openContext(reactor, { options: { size: 4096 } }));
    const node = await raw.open(
      openContext(reactor, { options: { size: 512 }, children: { file: child } }),
    );
    expect(node.resolve(OP_READ, 0, 512, out)).toBe(ZERO);
  });

  test("truncate() resizes the child by its offset more", async () => {
    const child = new RecordingNode(8192);
    const node = await open(child, { offset: 1024 });
    await runOn(reactor, () => node.truncate!(3000));
    expect(child.calls).toEqual([["truncate", 4024]]);
    node.refreshLength!();
    expect(node.bytes).toBe(3072);
  });

  test("truncate() refuses where the size is fixed, and what the child refuses", async () => {
    const child = new RecordingNode(8192);
    const window = await open(child, { size: 512 });
    await expect(window.truncate!(1024)).rejects.toThrow("Cannot resize fixed-size raw disks");
    child.bytes = 4096;
    window.refreshLength!();
    expect(window.bytes).toBe(512);
    const nothing = await nullCo.open(openContext(reactor));
    const node = await raw.open(openContext(reactor, { children: { file: nothing } }));
    await expect(node.truncate!(512)).rejects.toThrow(
      "Image format driver does not support resize",
    );
    const readOnly = await nullCo.open(openContext(reactor, { readOnly: true }));
    const over = await raw.open(openContext(reactor, { children: { file: readOnly } }));
    await expect(over.truncate!(512)).rejects.toThrow("Image is read-only");
    expect(child.calls).toEqual([]);
  });

  test("highestWrite is where the write ended that ended highest", async () => {
    const node = await open(new RecordingNode(8192), { offset: 1024 });
    node.resolve(OP_WRITE, 0, 512, out);
    expect(node.highestWrite).toBe(512);
    await runOn(reactor, () => node.writeZeroes(2048, 512, 0));
    await runOn(reactor, () => node.write(0, 1024, 4096, 0));
    node.resolve(OP_READ, 4096, 512, out);
    expect(node.highestWrite).toBe(2560);
  });
});
