import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { F_UNLCK, F_WRLCK, O_RDWR } from "../../../src/abi/linux.ts";
import {
  checkDirectAccess,
  type DirectAccess,
  openDirectAccess,
  watchWrites,
} from "../../../src/block/direct-access.ts";
import type { BlockDriver, OpenContext } from "../../../src/block/driver.ts";
import { file } from "../../../src/block/drivers/file/index.ts";
import { raw } from "../../../src/block/drivers/raw.ts";
import {
  type BlockNode,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
} from "../../../src/block/node.ts";
import { setWriteThreshold, writeThresholdOf } from "../../../src/block/write-threshold.ts";
import { openContext } from "../../support/block.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";

const folder = mkdtempSync(join(tmpdir(), "outport-direct-"));
const path = join(folder, "disk");
const BYTES = 65_536;
const IN_USE = "Node 'node0' is in use by programs that the kernel lets read and write directly";
const WRITER = { used: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };

const reactor = makeReactor(ENGINES[0]!);
const { linux } = reactor;
const nodes: BlockNode[] = [];
const accesses: DirectAccess[] = [];

afterAll(() => {
  rmSync(folder, { recursive: true });
  reactor.engine.close();
  reactor.memory.unmap();
});
beforeEach(() => writeFileSync(path, new Uint8Array(BYTES)));
afterEach(async () => {
  for (const access of accesses.splice(0)) access.close();
  for (const node of nodes.splice(0).reverse()) await runOn(reactor, () => node.close());
});

async function open(driver: BlockDriver, some: Partial<OpenContext>): Promise<BlockNode> {
  const node = await runOn(reactor, () => driver.open(openContext(reactor, some)));
  nodes.push(node);
  return node;
}

const openFile = (some: Partial<OpenContext> = {}) =>
  open(file, { ...some, options: { filename: path, ...some.options } });

function access(node: BlockNode, writes = true): DirectAccess | null {
  const opened = openDirectAccess(node, writes);
  if (opened !== null) accesses.push(opened);
  return opened;
}

/** Whether another program would find this byte locked. */
function isLocked(byte: number): boolean {
  const fd = linux.open(path, O_RDWR);
  const type = linux.testLock(fd, F_WRLCK, byte, 1);
  linux.close(fd);
  return type !== F_UNLCK;
}

describe("openDirectAccess()", () => {
  test("is for a regular file, and for a raw image that is all of it", async () => {
    const below = await openFile();
    expect(access(below)?.nodes).toEqual([below]);
    const above = await open(raw, { children: { file: below } });
    expect(access(above)?.nodes).toEqual([above, below]);
    expect(access(above)?.file.identity).toBe(access(below)?.file.identity);
  });

  test("is not for what has to see requests, or maps them elsewhere", async () => {
    for (const some of [{ cacheNoFlush: true }, { detectZeroes: "on" as const }]) {
      expect(access(await openFile(some))).toBe(null);
    }
    const below = await openFile();
    for (const options of [{ offset: 512 }, { size: BYTES }]) {
      expect(access(await open(raw, { options, children: { file: below } }))).toBe(null);
    }
    const onFake = await open(raw, { children: { file: new FakeNode(reactor, BYTES) } });
    expect(access(onFake)).toBe(null);
    expect(access(new FakeNode(reactor, BYTES))).toBe(null);
  });

  test("is not for a file around the page cache", async () => {
    expect(access(await openFile({ cacheDirect: true }))).toBe(null);
  });

  test("is not for a file that ends elsewhere than the node", async () => {
    writeFileSync(path, new Uint8Array(BYTES - 1));
    expect(access(await openFile())).toBe(null);
    writeFileSync(path, new Uint8Array(BYTES));
    const node = await openFile();
    writeFileSync(path, new Uint8Array(BYTES + 512));
    expect(access(node)).toBe(null);
  });
});

describe("DirectFile", () => {
  test("is locked as long as anybody has it open, by whatever is asked for", async () => {
    const node = await openFile();
    const fd = access(node)!.file.open(WRITER);
    expect([isLocked(100), isLocked(101), isLocked(203)]).toEqual([true, true, false]);
    nodes.pop();
    await runOn(reactor, () => node.close());
    expect(isLocked(101)).toBe(true);
    linux.close(fd);
    expect(isLocked(101)).toBe(false);
  });

  test("takes no locks where the node takes none", async () => {
    const fd = access(await openFile({ options: { locking: "off" } }))!.file.open(WRITER);
    expect(fd).toBeGreaterThan(0);
    expect(isLocked(101)).toBe(false);
    linux.close(fd);
  });

  test("knows how long the host has it", async () => {
    const direct = access(await openFile())!.file;
    const fd = openSync(path, "r+");
    ftruncateSync(fd, BYTES + 5);
    closeSync(fd);
    expect(direct.hostBytes).toBe(BYTES + 5);
    // Sparse.
    const wide = linux.open(path, O_RDWR);
    linux.ftruncate(wide, 2 ** 43);
    linux.close(wide);
    expect(direct.hostBytes).toBeGreaterThan(BYTES);
  });
});

describe("watchWrites()", () => {
  test("is refused on each node on the way while others write, and no longer", async () => {
    const below = await openFile();
    const above = await open(raw, { children: { file: below } });
    const direct = access(above)!;
    for (const node of [above, below]) expect(() => watchWrites(node)).toThrow(IN_USE);
    direct.close();
    for (const node of [above, below]) watchWrites(node)();
  });

  test("is nothing to those who only read", async () => {
    const node = await openFile();
    expect(access(node, false)).not.toBe(null);
    const end = watchWrites(node);
    expect(access(node, false)).not.toBe(null);
    end();
  });

  test("keeps others from writing directly until it ends", async () => {
    const below = await openFile();
    const above = await open(raw, { children: { file: below } });
    const end = watchWrites(below);
    const other = watchWrites(below);
    expect(access(above)).toBe(null);
    end();
    expect(access(above)).toBe(null);
    other();
    expect(access(above)).not.toBe(null);
  });

  test("is refused while a file is left that could be mapped", async () => {
    const node = await openFile();
    const direct = access(node)!;
    const fd = direct.file.open(WRITER);
    direct.close();
    expect(() => watchWrites(node)).toThrow(IN_USE);
    linux.close(fd);
    watchWrites(node)();
  });
});

test("setWriteThreshold() is refused while others write directly", async () => {
  const node = await openFile();
  setWriteThreshold(node, 4096, () => {});
  expect(access(node)).toBe(null);
  setWriteThreshold(node, 0, () => {});
  const direct = access(node)!;
  expect(() => setWriteThreshold(node, 4096, () => {})).toThrow(IN_USE);
  expect(writeThresholdOf(node)).toBe(0);
  direct.close();
  setWriteThreshold(node, 4096, () => {});
  expect(writeThresholdOf(node)).toBe(4096);
  setWriteThreshold(node, 0, () => {});
});

describe("checkDirectAccess()", () => {
  const reopen = (node: BlockNode, some: Partial<OpenContext>, used = WRITER.used) =>
    runOn(reactor, () => node.reopen!(openContext(reactor, some), { used, shared: PERM_ALL }));

  test("accepts what leaves the bytes where they are", async () => {
    const below = await openFile();
    const above = await open(raw, { children: { file: below } });
    access(above);
    const handle = await reopen(below, { options: { filename: path }, discardUnmap: true });
    checkDirectAccess([above, below]);
    handle.commit();
  });

  test("refuses another place, another file and whoever has to see requests", async () => {
    const below = await openFile();
    const above = await open(raw, { children: { file: below } });
    access(above, false);
    const other = new FakeNode(reactor, BYTES);
    for (const [node, some] of [
      [above, { options: { offset: 512 }, children: { file: below } }],
      [above, { children: { file: other } }],
      [below, { options: { filename: path }, detectZeroes: "on" }],
    ] as const) {
      const handle = await reopen(node, some);
      expect(() => checkDirectAccess([node])).toThrow(IN_USE);
      handle.undo();
      checkDirectAccess([node]);
    }
  });
});
