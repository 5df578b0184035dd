import { describe, expect, test } from "bun:test";
import {
  NBD_GREETING_BYTES,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_LIST,
  NBD_OPT_SET_META_CONTEXT,
} from "../../../../src/abi/nbd.ts";
import { NbdExports } from "../../../../src/exports/nbd/export-table.ts";
import { Handshake, OUTPUT_PENDING_MAX } from "../../../../src/exports/nbd/handshake.ts";
import { ALLOCATION_DEPTH, BASE_ALLOCATION } from "../../../../src/exports/nbd/meta-context.ts";
import {
  concat,
  hex,
  infoData,
  metaData,
  option,
  parseOptionReplies,
  u32,
} from "../../../support/nbd-wire.ts";
import { CASES } from "./handshake-cases.ts";
import recorded from "./qsd-handshake.json" with { type: "json" };

const RECORDED: Readonly<Record<string, { received: string; closed: boolean }>> = recorded;

/** What the recorded QSD exported. */
function offered(): NbdExports {
  const exports = new NbdExports();
  const common = { description: undefined, readOnly: false, multiConn: true };
  const blockSize = { min: 1, preferred: 4096, max: 32 * 1024 * 1024 };
  const contexts = [BASE_ALLOCATION];
  exports.add({
    ...common,
    ...{ id: "e0", name: "disk", description: "the first disk", bytes: 4 * 1024 * 1024 },
    ...{ blockSize, contexts },
  });
  exports.add({
    ...common,
    ...{ id: "e1", name: "", readOnly: true, bytes: 1024, blockSize, contexts },
  });
  exports.add({
    ...common,
    ...{ id: "e2", name: "direct", bytes: 65536, blockSize: { ...blockSize, min: 512 }, contexts },
  });
  const bitmaps = [
    { id: 2, name: "qemu:dirty-bitmap:bm0" },
    { id: 3, name: "qemu:dirty-bitmap:bm1" },
  ];
  exports.add({
    ...common,
    ...{ id: "e3", name: "maps", description: "", bytes: 1024 * 1024, blockSize },
    contexts: [BASE_ALLOCATION, ALLOCATION_DEPTH, ...bitmaps],
  });
  return exports;
}

/** Feeds `sent` in pieces of `pieceBytes`; everything that comes out. */
function converse(handshake: Handshake, sent: Uint8Array, pieceBytes: number): Uint8Array {
  const output: Uint8Array[] = [];
  const take = () => {
    const target = new Uint8Array(handshake.outputBytes);
    handshake.advanceOutput(handshake.copyOutput(target));
    output.push(target);
  };
  take();
  for (let at = 0, stuck = false; at < sent.length && !stuck; ) {
    const used = handshake.feed(sent.subarray(at, at + pieceBytes));
    stuck = used === 0 && handshake.outputBytes === 0;
    at += used;
    take();
  }
  return concat(...output);
}

describe("Handshake", () => {
  for (const pieceBytes of [1, 7, 4096, 1 << 20]) {
    test(`answers like QSD 11.1 to input in pieces of ${pieceBytes} bytes`, () => {
      for (const [name, sent] of CASES) {
        const handshake = new Handshake(offered());
        const received = hex(converse(handshake, sent, pieceBytes));
        const closed = handshake.state === "closed";
        expect({ name, received, closed }).toEqual({ name, ...RECORDED[name]! });
      }
    });
  }

  test("leaves what follows the handshake to the transmission", () => {
    const handshake = new Handshake(offered());
    const hello = concat(u32(3), option(NBD_OPT_GO, infoData("disk")));
    const used = handshake.feed(concat(hello, u32(0x25609513)));
    expect(used).toBe(hello.length);
    expect(handshake.state).toBe("transmission");
    expect(handshake.feed(u32(1))).toBe(0);
  });

  test("tells the session what was negotiated", () => {
    const names = ["GO extended with contexts", "GO", "SET_META_CONTEXT ids with gaps"];
    const sessions = names.map((name) => {
      const handshake = new Handshake(offered());
      converse(handshake, CASES.find(([found]) => found === name)![1], 4096);
      return handshake.session;
    });
    expect(sessions).toEqual([
      { exportId: "e0", mode: "extended", contexts: [BASE_ALLOCATION] },
      { exportId: "e0", mode: "simple", contexts: [] },
      {
        exportId: "e3",
        mode: "structured",
        contexts: [{ id: 3, name: "qemu:dirty-bitmap:bm1" }],
      },
    ]);
  });

  test("forgets the contexts of an export that was replaced by another of its name", () => {
    const exports = offered();
    const handshake = new Handshake(exports);
    const choice = option(NBD_OPT_SET_META_CONTEXT, metaData("disk", ["base:allocation"]));
    converse(handshake, concat(u32(3), option(NBD_OPT_EXTENDED_HEADERS), choice), 4096);
    const replaced = exports.find("disk")!;
    exports.remove("disk");
    exports.add({ ...replaced, id: "e9" });
    converse(handshake, option(NBD_OPT_GO, infoData("disk")), 4096);
    expect(handshake.session).toMatchObject({ exportId: "e9", contexts: [] });
  });

  test("stops reading while its output isn't taken", () => {
    const handshake = new Handshake(offered());
    const flood = concat(u32(3), ...Array.from({ length: 20000 }, () => option(NBD_OPT_LIST)));
    const used = handshake.feed(flood);
    expect(used).toBeLessThan(flood.length);
    expect(handshake.outputBytes).toBeLessThan(OUTPUT_PENDING_MAX + 8300);
    expect(handshake.feed(flood.subarray(used))).toBe(0);
  });

  test("lists any number of exports in bounded pieces", () => {
    const exports = new NbdExports();
    const [{ name: _, ...common }] = offered().list() as [
      ReturnType<typeof offered.prototype.find>,
    ];
    for (let i = 0; i < 500; i++) exports.add({ ...common, name: `${i}-${"n".repeat(4000)}` });
    const handshake = new Handshake(exports);
    const output: Uint8Array[] = [];
    let sent = concat(u32(3), option(NBD_OPT_LIST));
    let most = 0;
    for (let turn = 0; turn < 100; turn++) {
      sent = sent.subarray(handshake.feed(sent));
      most = Math.max(most, handshake.outputBytes);
      const target = new Uint8Array(handshake.outputBytes);
      handshake.advanceOutput(handshake.copyOutput(target));
      output.push(target);
    }
    const { replies } = parseOptionReplies(concat(...output).subarray(NBD_GREETING_BYTES));
    expect(replies.length).toBe(501);
    expect(most).toBeLessThan(OUTPUT_PENDING_MAX + 8300);
  });
});
