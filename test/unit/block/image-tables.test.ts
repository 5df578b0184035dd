import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  ImageTables,
  PAGE_FOUND,
  PAGE_MISSING,
  PAGE_OUTSIDE,
} from "../../../src/block/image-tables.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { EIO } from "../../../src/runtime/errno.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { KiB, MiB } from "../../support/images.ts";
import { Random } from "../../support/random.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

/** More than is kept in memory. */
const FILE_BYTES = 20 * MiB;
const PAGE = 64 * KiB;

describe("ImageTables", () => {
  let reactor: Reactor;
  let file: FakeNode;
  let tables: ImageTables;

  beforeEach(() => {
    reactor = makeReactor("epoll");
    file = new FakeNode(reactor, FILE_BYTES);
    const words = new Uint32Array(file.data.buffer);
    for (let i = 0; i < words.length; i++) words[i] = i;
    tables = new ImageTables(reactor, file);
  });

  afterEach(() => {
    expect(reactor.buffers.bytesInUse).toBe(0);
    reactor.engine.close();
    reactor.memory.unmap();
  });

  const load = () => runOn(reactor, () => tables.load());

  async function word(index: number): Promise<number> {
    if (tables.seek(index * 4, 4) === PAGE_MISSING) expect(await load()).toBe(0);
    expect(tables.seek(index * 4, 4)).toBe(PAGE_FOUND);
    return tables.u32(index * 4, true);
  }

  test("finds every word, whatever was forgotten for another", async () => {
    const random = new Random(7);
    for (let i = 0; i < 2000; i++) {
      const index = random.below(FILE_BYTES / 4);
      expect(await word(index)).toBe(index);
    }
  });

  test("never takes the memory of a page that is no longer there for it", async () => {
    const inFirst = () => tables.seek(4, 4);
    await word(1);
    for (let page = 1; page < FILE_BYTES / PAGE; page++) {
      expect(tables.seek(page * PAGE, 4)).toBe(PAGE_MISSING);
      await load();
      if (inFirst() === PAGE_FOUND) expect(tables.u32(4, true)).toBe(1);
    }
    expect(await word(1)).toBe(1);
  });

  test("reads a page once for all who miss it", async () => {
    expect(tables.seek(0, 4)).toBe(PAGE_MISSING);
    const results = await runOn(reactor, () => Promise.all([tables.load(), tables.load()]));
    expect([results, file.calls.length]).toEqual([[0, 0], 1]);
  });

  test("has an entry whole that reaches into the next page", async () => {
    const at = PAGE - 2;
    expect(tables.seek(at, 4)).toBe(PAGE_MISSING);
    await load();
    expect(tables.seek(at, 4)).toBe(PAGE_FOUND);
    expect(tables.u32(at, true)).toBe(new DataView(file.data.buffer).getUint32(at, true));
  });

  test("knows what lies outside of the file", () => {
    expect(tables.seek(FILE_BYTES - 4, 4)).toBe(PAGE_MISSING);
    for (const at of [FILE_BYTES - 3, FILE_BYTES, 2 ** 60, Number.NaN]) {
      expect(tables.seek(at, 4)).toBe(PAGE_OUTSIDE);
    }
  });

  test("does not keep what could not be read", async () => {
    file.fails = () => -EIO;
    tables.seek(0, 4);
    expect(await load()).toBe(-EIO);
    file.fails = () => 0;
    expect(await word(3)).toBe(3);
  });

  test("keeps nothing of a page that was on its way when all was forgotten", async () => {
    tables.seek(0, 4);
    const result = await runOn(reactor, async () => {
      const loading = tables.load();
      tables.forget();
      return loading;
    });
    expect([result, tables.seek(0, 4)]).toEqual([0, PAGE_MISSING]);
  });

  test("shows a table in order, and nothing of one that is too long", async () => {
    const seen: number[] = [];
    const see = (part: DataView, at: number) => seen.push(at, part.byteLength);
    await runOn(reactor, () => tables.scan(512, 300 * KiB, "what", see));
    await runOn(reactor, () => tables.scan(0, 17 * MiB, "what", see));
    expect(seen).toEqual([0, 256 * KiB, 256 * KiB, 44 * KiB]);
  });
});
