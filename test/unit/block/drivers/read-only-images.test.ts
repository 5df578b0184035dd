import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../../../src/block/backend.ts";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import {
  type BlockLimits,
  type BlockNode,
  MAPPED,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Resolution,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../../../src/block/node.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import { EIO, EPERM } from "../../../../src/runtime/errno.ts";
import { extentsOf, openContext, Payload } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { assertSameBytes, KiB, MiB } from "../../../support/images.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";
import {
  type SmallImage,
  sealVhdx,
  sealVpc,
  smallImages,
  vdiImage,
  vhdxImage,
  vmdkImage,
  vpcFixedImage,
  vpcImage,
} from "../../../support/small-images.ts";

const DATA = STATUS_DATA | STATUS_ALLOCATED;
const ZEROED = STATUS_ZERO | STATUS_ALLOCATED;
const HOLE = STATUS_ZERO;
/** Of a host file that is asked about only. */
const FD = 77;
const PAYLOAD_BYTES = 256 * KiB;

let reactor: Reactor;
let payload: Payload;
let file: FakeNode;
let lines: string[];

beforeEach(() => {
  reactor = makeReactor("epoll");
  payload = new Payload(reactor, PAYLOAD_BYTES);
  lines = [];
});

afterEach(() => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
});

interface OpenOptions {
  readonly limits?: Partial<BlockLimits>;
  readonly readOnly?: boolean;
  readonly autoReadOnly?: boolean;
  readonly hasBacking?: boolean;
}

function open(image: SmallImage, options: OpenOptions = {}): Promise<BlockNode> {
  const { limits, readOnly = true, autoReadOnly = false, hasBacking = false } = options;
  file = new FakeNode(reactor, 0, limits);
  file.data = image.file;
  const driver = blockDrivers.find(({ name }) => name === image.driver)!;
  const backing = hasBacking ? { backing: new FakeNode(reactor, 512) } : {};
  const context = openContext(reactor, {
    children: { file, ...backing },
    readOnly,
    autoReadOnly,
    log: (line) => lines.push(line),
  });
  return runOn(reactor, () => driver.open(context));
}

function read(node: BlockNode, offset: number, bytes: number): Promise<number> {
  const backend = new BlockBackend(reactor, node, { writable: false, writethrough: false });
  return runOn(reactor, () => backend.request(OP_READ, offset, bytes, payload.address, 0));
}

async function readAll(node: BlockNode, step: number): Promise<Uint8Array> {
  const content = new Uint8Array(node.bytes);
  for (let at = 0; at < node.bytes; at += step) {
    const bytes = Math.min(step, node.bytes - at);
    payload.u8.fill(0xee);
    expect(await read(node, at, bytes)).toBe(0);
    content.set(payload.u8.subarray(0, bytes), at);
  }
  return content;
}

/** The image with a field of its file changed, big- or little-endian as it says. */
function changed(
  image: SmallImage,
  change: (view: DataView, file: Uint8Array) => void,
): SmallImage {
  const bytes = image.file.slice();
  change(new DataView(bytes.buffer), bytes);
  return { ...image, file: bytes };
}

async function errorOf(image: SmallImage, options: OpenOptions = {}): Promise<string> {
  return open(image, options).then(
    () => "opened",
    (error: Error) => error.message,
  );
}

describe("an image that is only read", () => {
  for (const make of smallImages) {
    const image = make();
    const { name } = image;

    test(`of ${name} shows the disk`, async () => {
      const node = await open(image);
      expect([node.bytes, node.writable]).toEqual([image.disk.length, false]);
      assertSameBytes(await readAll(node, PAYLOAD_BYTES), image.disk);
      assertSameBytes(await readAll(node, 99 * 512), image.disk);
    });

    test(`of ${name} shows the disk from a file with large blocks`, async () => {
      // Its file is whole blocks, as a device with them is; a footer stays where it is.
      const hasFooter = name.includes("fixed") || name.includes("footer");
      const requestAlignment = hasFooter ? 512 : 4096;
      const padded = new Uint8Array(Math.ceil(image.file.length / 4096) * 4096);
      padded.set(image.file);
      const whole = hasFooter ? image : { ...image, file: padded };
      const limits = { requestAlignment, memoryAlignment: requestAlignment };
      const node = await open(whole, { limits });
      expect(node.limits.requestAlignment).toBe(requestAlignment);
      assertSameBytes(await readAll(node, PAYLOAD_BYTES), image.disk);
      assertSameBytes(await readAll(node, 99 * 512), image.disk);
      for (const { offset, bytes } of file.calls) {
        expect([offset % requestAlignment, bytes % requestAlignment]).toEqual([0, 0]);
      }
    });

    test(`of ${name} is opened for reading only`, async () => {
      expect(await errorOf(image, { readOnly: false })).toBe("Image is read-only");
      const node = await open(image, { readOnly: false, autoReadOnly: true });
      expect(node.writable).toBe(false);
      expect(await runOn(reactor, () => node.write(0, 512, payload.address, 0))).toBe(-EPERM);
      const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
      expect([node.resolve(OP_FLUSH, 0, 0, out), node.truncate]).toEqual([ZERO, undefined]);
    });

    test(`of ${name} reports what it can't read`, async () => {
      const node = await open(image);
      file.fails = () => -EIO;
      expect(await read(node, image.disk.length - 1024, 512)).toBe(-EIO);
    });
  }
});

describe("resolve()", () => {
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };

  test("maps to the file once the table is in memory", async () => {
    const node = await open(vdiImage());
    expect(node.resolve(OP_READ, 4096, 512, out)).toBe(SLOW);
    await read(node, 4096, 512);
    file.fd = FD;
    expect(node.resolve(OP_READ, 4096, 512, out)).toBe(MAPPED);
    expect(out).toEqual({ fd: FD, offset: 1024 + MiB + 4096, bytes: 512 });
    expect(node.resolve(OP_READ, MiB + 512, 3 * MiB, out)).toBe(ZERO);
    expect(out.bytes).toBe(2 * MiB - 512);
    expect([node.isKnownData(0, 512), node.isKnownData(MiB - 512, 1024)]).toEqual([true, false]);
  });

  test("joins grains that lie side by side", async () => {
    const node = await open(vmdkImage());
    await read(node, 0, 512);
    file.fd = FD;
    expect(node.resolve(OP_READ, 512, 64 * KiB, out)).toBe(MAPPED);
    expect([out.offset, out.bytes]).toEqual([32 * 512 + 512, 2 * 4096 - 512]);
  });

  test("leaves what is not aligned to the slow way", async () => {
    const limits = { requestAlignment: 4096, memoryAlignment: 4096 };
    const node = await open(vdiImage(), { limits });
    await read(node, 0, 4096);
    file.fd = FD;
    expect(node.resolve(OP_READ, 0, 4096, out)).toBe(SLOW);
  });

  test("never resolves a write to the file", async () => {
    const node = await open(vpcFixedImage());
    file.fd = FD;
    for (const op of [OP_WRITE, OP_WRITE_ZEROES, OP_DISCARD] as const) {
      expect(node.resolve(op, 0, 512, out)).toBe(SLOW);
    }
    expect(await runOn(reactor, () => node.discard(0, 512))).toBe(-EPERM);
    expect(await runOn(reactor, () => node.writeZeroes(0, 512, 0))).toBe(-EPERM);
  });
});

describe("blockStatus()", () => {
  const statusOf = async (image: SmallImage) => {
    const node = await open(image);
    return extentsOf(reactor, node, 0, node.bytes);
  };

  test("of vdi and vhdx counts blocks without data as theirs", async () => {
    const blocks = [
      [DATA, MiB],
      [ZEROED, 2 * MiB],
    ];
    expect(await statusOf(vdiImage())).toEqual([...blocks, [DATA, 2048]] as never);
    const [first] = blocks;
    expect(await statusOf(vhdxImage())).toEqual([first, [ZEROED, 3 * MiB], [DATA, 8192]] as never);
  });

  test("of vpc knows blocks", async () => {
    const block = 64 * KiB;
    expect(await statusOf(vpcImage())).toEqual([
      [DATA, block],
      [ZEROED, block],
      [DATA, block + 4096],
    ]);
  });

  test("of vmdk tells zeroed grains from absent ones", async () => {
    for (const packed of [false, true]) {
      expect(await statusOf(vmdkImage({ packed }))).toEqual([
        [DATA, 8 * KiB],
        [ZEROED, 4 * KiB],
        [DATA, 4 * KiB],
        [HOLE, 16 * KiB],
        [DATA, 4 * KiB],
        [HOLE, 8 * KiB],
        [DATA, 1024],
      ]);
    }
  });

  test("of a fixed disk asks the file", async () => {
    const node = await open(vpcFixedImage());
    file.status = (offset, bytes, status) => {
      status.bytes = offset < 4096 ? Math.min(bytes, 4096 - offset) : bytes;
      status.flags = offset < 4096 ? STATUS_ZERO : STATUS_DATA | STATUS_ALLOCATED;
      status.depth = 0;
      return 0;
    };
    expect(await extentsOf(reactor, node, 0, node.bytes)).toEqual([
      [DATA | STATUS_ZERO, 4096],
      [DATA, node.bytes - 4096],
    ]);
    expect(node.isKnownData(0, 512)).toBe(false);
  });
});

describe("damage", () => {
  const beyond = async (image: SmallImage, offset: number) => {
    const node = await open(image);
    expect(await read(node, offset, 512)).toBe(-EIO);
    expect(await read(node, offset, 512)).toBe(-EIO);
    return lines;
  };

  test("of an entry that points out of the file fails that read, and is told once", async () => {
    const image = vdiImage();
    const bad = changed(image, (view) => view.setUint32(512, 1000, true));
    expect(await beyond(bad, 512)).toEqual([
      "vdi: the image of node 'node0' is damaged or truncated: no data for offset 512",
    ]);
    expect(await read(await open(bad), 3 * MiB, 512)).toBe(0);
    const grain = changed(vmdkImage(), (view) => view.setUint32(22 * 512, 0xfffffff0, true));
    expect(await beyond(grain, 0)).toHaveLength(2);
  });

  test("of a table that lies out of the file fails its reads", async () => {
    const map = changed(vdiImage(), (view) => view.setUint32(0x154, 0x4000_0000, true));
    expect(await beyond(map, 0)).toHaveLength(1);
    const table = changed(vmdkImage(), (view) => view.setUint32(21 * 512, 0xffff, true));
    expect(await beyond(table, 0)).toHaveLength(2);
  });

  test("of a block that is cut off fails what is missing", async () => {
    const image = vdiImage();
    const node = await open({ ...image, file: image.file.slice(0, 1024 + MiB + 4096) });
    expect([await read(node, 0, 4096), await read(node, 0, 8192)]).toEqual([0, -EIO]);
    expect(await read(node, 4096, 512)).toBe(-EIO);
  });

  test("of compressed grains fails their reads", async () => {
    const image = vmdkImage({ packed: true });
    const at = new DataView(image.file.buffer).getUint32(22 * 512, true) * 512;
    for (const bytes of [0, 8193, 0xffffffff]) {
      const bad = changed(image, (view) => view.setUint32(at + 8, bytes, true));
      expect(await read(await open(bad), 0, 512)).toBe(-EIO);
    }
    const garbled = changed(image, (view) => view.setUint32(at + 12, 0));
    expect(await read(await open(garbled), 0, 512)).toBe(-EIO);
  });

  test("of a block's state fails its reads", async () => {
    for (const state of [4, 7]) {
      const bad = changed(vhdxImage(), (view) => view.setUint32(2 * MiB, state, true));
      expect(await read(await open(bad), 0, 512)).toBe(-EIO);
    }
  });
});

describe("opening refuses in QSD's words", () => {
  const le = (image: SmallImage, at: number, value: number) =>
    changed(image, (view) => view.setUint32(at, value, true));

  test("vdi", async () => {
    const image = vdiImage();
    const size = image.disk.length;
    for (const [at, value, message] of [
      [0x40, 5, "Image not in VDI format (bad signature 00000005)"],
      [0x44, 0x10002, "unsupported VDI image (version 1.2)"],
      [0x154, 513, "unsupported VDI image (unaligned block map offset 0x201)"],
      [0x158, 513, "unsupported VDI image (unaligned data offset 0x201)"],
      [0x168, 4096, "unsupported VDI image (sector size 4096 is not 512)"],
      [0x178, 4096, "unsupported VDI image (block size 4096 is not 1048576)"],
      [0x180, 3, `unsupported VDI image (disk size ${size}, image bitmap has room for ${3 * MiB})`],
      [0x1a8, 1, "unsupported VDI image (non-NULL link UUID)"],
      [0x1b8, 1, "unsupported VDI image (non-NULL parent UUID)"],
      [0x180, 0x4000_0000, "unsupported VDI image (too many blocks 1073741824, max is 536870784)"],
      [
        0x174,
        0x1000_0000,
        `Unsupported VDI image size (size is 0x10000000${size.toString(16).padStart(8, "0")}, ` +
          "max supported is 0x1fffff8000000)",
      ],
    ] as const) {
      expect(await errorOf(le(image, at, value))).toBe(message);
    }
    expect(await errorOf({ ...image, file: new Uint8Array(0) })).toBe(
      "Image not in VDI format (bad signature 00000000)",
    );
  });

  test("vpc", async () => {
    const image = vpcImage();
    const be = (at: number, value: number, seal = true) =>
      changed(image, (view, bytes) => {
        view.setUint32(at, value);
        if (seal) sealVpc(bytes);
      });
    const truncated =
      "block-vpc: free_data_block_offset points after the end of file. " +
      "The image has been truncated.";
    for (const [bad, message] of [
      [be(0, 5), "invalid VPC image"],
      [be(8, 77, false), "Incorrect header checksum"],
      [be(60, 4), "unsupported VPC image (differencing disk)"],
      [be(60, 9), "unsupported VPC image (disk type 9)"],
      [be(16, 0x8000_0000), "Error reading dynamic VHD header"],
      [be(20, 0x4000_0000), "Invalid header magic"],
      [be(512, 5), "Invalid header magic"],
      [be(544, 3 << 20), "Invalid block size 3145728"],
      [be(544, 0), "Invalid block size 0"],
      [be(540, 0xffff_ffff), "Max Table Entries too large (-1)"],
      [be(540, 2), "Page table too small"],
      [be(528, 0x8000_0000), "Error reading pagetable"],
      [be(532, 0x4000_0000), truncated],
      [be(1536, 0x7fff_ffff), truncated],
      [be(48, 0xffff_ffff), "Could not open image: File too large"],
    ] as const) {
      expect(await errorOf(bad)).toBe(message);
    }
    const cut = { ...vpcFixedImage(), file: vpcFixedImage().file.slice(0, -512) };
    expect(await errorOf(cut)).toBe("invalid VPC image");
  });

  test("vhdx", async () => {
    const image = vhdxImage();
    const sealed = (change: (view: DataView) => void) =>
      changed(image, (view, bytes) => {
        change(view);
        sealVhdx(bytes);
      });
    const headers = (at: number, value: number) =>
      sealed((view) => {
        for (const start of [64 * KiB, 128 * KiB]) view.setUint32(start + at, value, true);
      });
    const [badArgument, badFeature] = ["Invalid argument", "Operation not supported"].map(
      (text) => `Could not open image: ${text}`,
    );
    for (const [bad, message] of [
      [le(image, 0, 3), badArgument],
      [headers(0, 3), "No valid VHDX header found"],
      [headers(8, 7), "opened"],
      [headers(72, 0), badArgument],
      [headers(64, 0x10001), badArgument],
      [le(image, 192 * KiB + 8, 1), badArgument],
      [sealed((view) => view.setUint32(192 * KiB + 8, 3000, true)), badArgument],
      [sealed((view) => view.setUint32(192 * KiB + 16, 3, true)), badFeature],
      [sealed((view) => view.setUint32(192 * KiB + 36, 0x100, true)), badArgument],
      [le(image, 3 * MiB, 3), badArgument],
      [le(image, 3 * MiB + 32, 3), badFeature],
      [le(image, 3 * MiB + 64 * KiB, 3 * MiB), badArgument],
      [le(image, 3 * MiB + 64 * KiB, 512 * MiB), badArgument],
      [le(image, 3 * MiB + 64 * KiB + 4, 2), badArgument],
      [le(image, 3 * MiB + 64 * KiB + 16, 0), badArgument],
      [le(image, 3 * MiB + 64 * KiB + 20, 0x8000_0000), badArgument],
      [le(image, 3 * MiB + 64 * KiB + 48, 4096), badFeature],
      [le(image, 2 * MiB, 7 * MiB + 6), badArgument],
      [le(image, 2 * MiB, 3 * MiB + 6), badArgument],
      [le(image, 2 * MiB + 4, 0xffff_ffff), badArgument],
    ] as const) {
      expect(await errorOf(bad)).toBe(message!);
    }
    const end = 6 * MiB;
    expect(lines).toEqual([
      `VHDX BAT entry 0 start offset ${7 * MiB} points after end of file (${end}). ` +
        "Image has probably been truncated.",
      `VHDX region ${3 * MiB}-${4 * MiB} overlaps with region ${3 * MiB}-${4 * MiB}`,
      "VHDX BAT entry 0 offset overflow.",
    ]);
  });

  test("vhdx with something in its log", async () => {
    const withLog = (hasEntry: boolean) =>
      changed(vhdxImage(), (view, bytes) => {
        for (const start of [64 * KiB, 128 * KiB]) view.setUint32(start + 48, 7, true);
        sealVhdx(bytes);
        if (!hasEntry) return;
        view.setUint32(MiB + 8192, 0x65676f6c, true);
        view.setUint32(MiB + 8192 + 32, 7, true);
      });
    expect(await errorOf(withLog(false))).toBe("opened");
    expect(await errorOf(withLog(true))).toBe(
      "VHDX image file '' opened read-only, but contains a log that needs to be replayed",
    );
  });

  test("vmdk", async () => {
    const image = vmdkImage();
    const descriptor = (from: string, to: string) =>
      changed(image, (_view, bytes) => {
        const text = Buffer.from(bytes.subarray(512, 1536)).toString("latin1").replace(from, to);
        bytes.set(Buffer.from(text, "latin1").subarray(0, 1024), 512);
      });
    for (const [bad, message] of [
      [{ ...image, file: new Uint8Array(0) }, "File is too small, not a valid image"],
      [le(image, 0, 3), "invalid VMDK image descriptor"],
      [le(image, 0, 0x44574f43), "Unsupported image type 'vmfsSparse'"],
      [le(image, 4, 4), "Unsupported VMDK version 4"],
      [le(image, 12, 0), "Unsupported image type 'monolithicSparse'"],
      [le(image, 16, 0x8000_0000), "L1 size too big"],
      [le(image, 20, 0), "L1 entry size is invalid"],
      [le(image, 20, 0x20_0001), "Invalid granularity, image may be corrupt"],
      [le(vmdkImage({ packed: true }), 20, 8192), "Invalid granularity, image may be corrupt"],
      [le(image, 44, 513), "L2 table size too big"],
      [le(image, 64, 0x4000_0000), "File truncated, expecting at least 549755813888 bytes"],
      [le(image, 56, 0), "Could not read l1 table from extent '': Invalid argument"],
      [le(image, 60, 0x4000_0000), "Could not read l1 table from extent '': Invalid argument"],
      [descriptor("\nCID=", "\nCID=zz"), "Could not open image: Invalid argument"],
      [descriptor("parentCID", "parentXID"), "Could not open image: Invalid argument"],
      [vmdkImage({ parentCid: "12345678" }), "VMDK images with a parent are not supported"],
    ] as const) {
      expect(await errorOf(bad)).toBe(message);
    }
    const end = changed(image, (view) => view.setBigUint64(56, 2n ** 64n - 1n, true));
    expect(await errorOf(end)).toBe("Invalid footer");
    expect(await errorOf(image, { hasBacking: true })).toBe(
      "VMDK images with a parent are not supported",
    );
  });
});

describe("describe()", () => {
  test("tells what QSD tells", async () => {
    expect((await open(vpcFixedImage())).describe()).toEqual({
      image: { "dirty-flag": false },
      limits: { "request-alignment": 1 },
    });
    expect((await open(vhdxImage())).describe()).toEqual({
      image: { "dirty-flag": false, "cluster-size": MiB },
      limits: { "request-alignment": 512 },
    });
    const bytes = vmdkImage().disk.length;
    const extent = { format: "", filename: "", "virtual-size": bytes, "cluster-size": 4096 };
    expect((await open(vmdkImage({ packed: true }))).describe()).toEqual({
      image: {
        "dirty-flag": false,
        "cluster-size": 4096,
        "format-specific": {
          type: "vmdk",
          data: {
            "create-type": "streamOptimized",
            cid: 0x1234abcd,
            "parent-cid": 0xffffffff,
            extents: [{ ...extent, compressed: true }],
          },
        },
      },
      limits: { "request-alignment": 1, "write-zeroes-alignment": 4096 },
    });
  });

  test("counts by geometry but for writers who mean their size", async () => {
    expect((await open(vpcImage())).bytes).toBe(3 * 64 * KiB + 4096);
    expect((await open(vpcImage("vpc "))).bytes).toBe(3 * 4 * 17 * 512);
    expect((await open(vpcImage("qemu"))).bytes).toBe(3 * 4 * 17 * 512);
    expect((await open(vpcImage("else"))).bytes).toBe(3 * 64 * KiB + 4096);
  });
});

describe("reopen()", () => {
  test("goes on with another file, or back", async () => {
    const image = vdiImage();
    const node = await open(image);
    await read(node, 0, 512);
    const before = file;
    const after = new FakeNode(reactor, image.file.length);
    after.data.set(image.file);
    const context = openContext(reactor, { children: { file: after }, readOnly: true });
    const permissions = { used: 0, shared: 15 };
    const reopened = await runOn(reactor, () => node.reopen!(context, permissions));
    before.fails = () => -EIO;
    assertSameBytes(await readAll(node, PAYLOAD_BYTES), image.disk);
    reopened.undo();
    expect(await read(node, 0, 512)).toBe(-EIO);
    const writable = { ...context, readOnly: false };
    const error = await runOn(reactor, () => node.reopen!(writable, permissions)).catch((e) => e);
    expect(error.message).toBe("Image is read-only");
  });
});
