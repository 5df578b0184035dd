/** Zeroes of parts of clusters: marked where they can be, written where they must be. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { ENOTSUP } from "../../../../../src/runtime/errno.ts";
import { extentsOf, Payload } from "../../../../support/block.ts";
import { sparseImage, writeAt } from "../../../../support/images.ts";
import { emptyImage } from "../../../../support/qcow2-header.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 65536;
const ZEROES = STATUS_ZERO | STATUS_ALLOCATED;
const DATA = STATUS_DATA | STATUS_ALLOCATED;

describe("write zeroes of a part of a cluster", () => {
  let folder: string;
  let reactor: Reactor;
  let image: OpenedImage;
  let payload: Payload;

  /** Over a raw file that has data in the second cluster, and ends in the fourth. */
  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "outport-qcow2-"));
    const path = join(folder, "image.qcow2");
    const base = join(folder, "base.raw");
    const data = new Uint8Array(3 * CLUSTER + 512);
    data.fill(7, CLUSTER, CLUSTER + 1024);
    data.fill(8, 3 * CLUSTER);
    await sparseImage(base, 3 * CLUSTER + 512);
    await writeAt(base, CLUSTER, new Uint8Array(4096).fill(7));
    await writeAt(base, 3 * CLUSTER, new Uint8Array(512).fill(8));
    writeFileSync(path, emptyImage());
    reactor = makeReactor("epoll");
    payload = new Payload(reactor, CLUSTER);
    image = await openQcow2(reactor, { path, backing: { path: base, format: "raw" } });
  });

  afterEach(async () => {
    await image.close();
    expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
    reactor.engine.close();
    reactor.memory.unmap();
    rmSync(folder, { recursive: true });
  });

  const ask = (op: 0 | 1 | 3 | 4, offset: number, bytes: number, flags = 0) =>
    runOn(reactor, () => image.backend.request(op, offset, bytes, payload.address, flags));
  const zero = (offset: number, bytes: number, flags = 0) =>
    ask(OP_WRITE_ZEROES, offset, bytes, flags);
  const statusOf = (cluster: number) => extentsOf(reactor, image.node, cluster * CLUSTER, CLUSTER);

  test("marks all of it where the rest reads as zeroes", async () => {
    // Behind the backing file, and over its data.
    expect([await zero(5 * CLUSTER + 100, 200), await zero(CLUSTER, 4096)]).toEqual([0, 0]);
    expect(await statusOf(5)).toEqual([[ZEROES, CLUSTER]]);
    expect(await statusOf(1)).toEqual([[ZEROES, CLUSTER]]);
    expect(await ask(OP_READ, CLUSTER, CLUSTER)).toBe(0);
    expect(payload.u8.subarray(0, CLUSTER).every((byte) => byte === 0)).toBe(true);
  });

  test("writes them where the rest is data, of the image or below it", async () => {
    expect(await zero(CLUSTER + 512, 1024)).toBe(0);
    expect(await statusOf(1)).toEqual([[DATA, CLUSTER]]);
    payload.u8.fill(9);
    await ask(OP_WRITE, 6 * CLUSTER, CLUSTER);
    expect(await zero(6 * CLUSTER, 512)).toBe(0);
    expect(await statusOf(6)).toEqual([[DATA, CLUSTER]]);
    expect(await ask(OP_READ, CLUSTER, 2048)).toBe(0);
    const expected = new Uint8Array(2048);
    expected.fill(7, 0, 512);
    expected.fill(7, 1536);
    expect(payload.u8.slice(0, 2048)).toEqual(expected);
  });

  test("does so without falling back where that is asked for", async () => {
    expect(await zero(5 * CLUSTER + 100, 200, REQ_NO_FALLBACK)).toBe(0);
    expect(await zero(CLUSTER + 512, 1024, REQ_NO_FALLBACK)).toBe(-ENOTSUP);
  });

  test("leaves alone what is beyond a new end, and shows nothing of below", async () => {
    await runOn(reactor, () => image.node.truncate!(3 * CLUSTER));
    await runOn(reactor, () => image.node.truncate!(5 * CLUSTER));
    expect(await statusOf(3)).toEqual([[ZEROES, CLUSTER]]);
    await runOn(reactor, () => image.node.truncate!(2000 * CLUSTER + 512));
    await runOn(reactor, () => image.node.truncate!(2001 * CLUSTER));
    // Nobody wrote there: what the short backing file lacks counts as its own.
    const out = { flags: 0, bytes: 0, depth: 0 };
    const asked = await runOn(reactor, async () =>
      image.node.blockStatus(2000 * CLUSTER, CLUSTER, out),
    );
    expect([asked, out.bytes, out.depth]).toEqual([0, CLUSTER, 2]);
  });

  test("makes an image shorter that cannot mark zeroes, and shows nothing of below", async () => {
    await image.close();
    const path = join(folder, "old.qcow2");
    const old = emptyImage();
    new DataView(old.buffer).setUint32(4, 2);
    writeFileSync(path, old);
    const backing = { path: join(folder, "base.raw"), format: "raw" } as const;
    image = await openQcow2(reactor, { path, backing });
    expect(await ask(OP_WRITE, CLUSTER, CLUSTER)).toBe(0);
    await runOn(reactor, () => image.node.truncate!(CLUSTER));
    await runOn(reactor, () => image.node.truncate!(5 * CLUSTER));
    for (const cluster of [1, 3]) {
      expect(await ask(OP_READ, cluster * CLUSTER, CLUSTER)).toBe(0);
      expect(payload.u8.subarray(0, CLUSTER).every((byte) => byte === 0)).toBe(true);
    }
  });
});
