import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { F_UNLCK, F_WRLCK, O_RDWR } from "../../../src/abi/linux.ts";
import { blkdebug } from "../../../src/block/drivers/blkdebug/index.ts";
import { file } from "../../../src/block/drivers/file/index.ts";
import { nullCo } from "../../../src/block/drivers/null.ts";
import { raw } from "../../../src/block/drivers/raw.ts";
import { isInactive } from "../../../src/block/inactive-nodes.ts";
import {
  MAPPED,
  OP_READ,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  type Resolution,
} from "../../../src/block/node.ts";
import { NodeTable } from "../../../src/block/nodes.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import type { NodeOpen, NodePermissions, NodesReopen } from "../../../src/iothread/messages.ts";
import { messageOf } from "../../support/iothread.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";

const folder = mkdtempSync(join(tmpdir(), "outport-reopen-"));
afterAll(() => rmSync(folder, { recursive: true }));
const BYTES = 65_536;

let reactor: Reactor;
let table: NodeTable;
let logged: string[];
let paths: Record<"a" | "b", string>;

beforeEach(() => {
  reactor = makeReactor(ENGINES[0]!);
  logged = [];
  table = new NodeTable({
    reactor,
    drivers: [file, raw, nullCo, blkdebug],
    log: (text) => void logged.push(text),
  });
  paths = { a: join(folder, "a"), b: join(folder, "b") };
  for (const path of Object.values(paths)) writeFileSync(path, new Uint8Array(BYTES));
});

afterEach(async () => {
  await runOn(reactor, () => table.closeAll());
  expect([openFilesOf(paths.a), openFilesOf(paths.b), logged]).toEqual([0, 0, []]);
  reactor.engine.close();
  reactor.memory.unmap();
});

/** How many descriptors of this process lead to the file. */
function openFilesOf(path: string): number {
  return readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      return false;
    }
  }).length;
}

/** Bytes of the image locks on the file, as another process sees them. */
function locksOf(path: string): number[] {
  const fd = reactor.linux.open(path, O_RDWR);
  const bytes = [0, 1, 2, 3].flatMap((bit) => [100 + bit, 200 + bit]).sort();
  const held = bytes.filter((byte) => reactor.linux.testLock(fd, F_WRLCK, byte, 1) !== F_UNLCK);
  reactor.linux.close(fd);
  return held;
}

const definition = (nodeName: string, driver: string, some: Partial<NodeOpen> = {}): NodeOpen => ({
  nodeName,
  driver,
  options: {},
  readOnly: false,
  autoReadOnly: false,
  forceShare: false,
  cacheDirect: false,
  cacheNoFlush: false,
  discardUnmap: false,
  detectZeroes: "off",
  children: {},
  ...some,
});
const fileA = (some: Partial<NodeOpen> = {}) =>
  definition("fa", "file", { options: { filename: paths.a }, ...some });
const fileB = (some: Partial<NodeOpen> = {}) =>
  definition("fb", "file", { options: { filename: paths.b }, ...some });
const window = (child: string, offset: number, size?: number) =>
  definition("r", "raw", {
    options: { offset, ...(size === undefined ? {} : { size }) },
    children: { file: child },
  });

const open = (node: NodeOpen) => runOn(reactor, () => table.calls["node-open"](node));
const permissions = (nodeName: string, used: number, shared: number): NodePermissions => ({
  nodeName,
  used,
  shared,
  active: true,
});
const give = (...nodes: NodePermissions[]) =>
  runOn(reactor, () => table.calls["node-permissions"]({ nodes }));
const begin = async (some: Partial<NodesReopen>) => {
  const params = { nodes: [], permissions: [], connected: [], ...some };
  return (await runOn(reactor, () => table.calls["nodes-reopen"](params))).reopen;
};
const end = (reopen: number, keep: boolean) =>
  runOn(reactor, () => table.calls["nodes-reopen-end"]({ reopen, keep }));

const USED = PERM_CONSISTENT_READ | PERM_WRITE;
const SHARED = PERM_ALL & ~PERM_RESIZE;
const LOCKED = [100, 101, 203];

function fdOf(name: string): number {
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
  expect(table.get(name).resolve(OP_READ, 0, 512, out)).toBe(MAPPED);
  return out.fd;
}

describe("nodes-reopen", () => {
  for (const keep of [true, false]) {
    const verb = keep ? "keeps" : "drops";
    test(`opens the file again under the same number, and ${verb} it`, async () => {
      await open(fileA());
      await give(permissions("fa", USED, SHARED));
      const fd = fdOf("fa");
      const reopen = await begin({
        nodes: [fileA({ cacheDirect: true, readOnly: true })],
        permissions: [permissions("fa", PERM_CONSISTENT_READ, PERM_ALL)],
      });
      const node = table.get("fa");
      expect([node.writable, node.limits.requestAlignment > 1]).toEqual([false, true]);
      // Nobody gets in between: both sides' locks are held.
      expect(locksOf(paths.a)).toEqual(LOCKED);
      await end(reopen, keep);
      expect([node.writable, node.limits.requestAlignment > 1]).toEqual([!keep, keep]);
      expect(locksOf(paths.a)).toEqual(keep ? [100] : LOCKED);
      expect([fdOf("fa"), openFilesOf(paths.a)]).toEqual([fd, 1]);
    });

    test(`gives a node another child and permissions, and ${verb} them`, async () => {
      await open(fileA());
      await open(fileB());
      await open(window("fa", 512));
      await give(permissions("r", USED, PERM_ALL), permissions("fa", USED, SHARED));
      const reopen = await begin({
        nodes: [window("fb", 1024, 4096)],
        permissions: [permissions("fb", USED, SHARED), permissions("fa", 0, PERM_ALL)],
        connected: ["fb", "r"],
      });
      expect([fdOf("r"), table.get("r").bytes]).toEqual([fdOf("fb"), 4096]);
      expect([locksOf(paths.a), locksOf(paths.b)]).toEqual([LOCKED, LOCKED]);
      await end(reopen, keep);
      expect(fdOf("r")).toBe(fdOf(keep ? "fb" : "fa"));
      expect(table.get("r").bytes).toBe(keep ? 4096 : BYTES - 512);
      const [held, free] = keep ? [paths.b, paths.a] : [paths.a, paths.b];
      expect([locksOf(held), locksOf(free)]).toEqual([LOCKED, []]);
    });
  }

  test("goes all the way back when a later node refuses", async () => {
    await open(fileA());
    await open(fileB());
    await open(window("fa", 512));
    await give(permissions("r", USED, PERM_ALL), permissions("fa", USED, SHARED));
    const failing = begin({
      nodes: [fileA({ cacheDirect: true }), window("fb", BYTES + 512)],
      permissions: [permissions("fb", USED, SHARED)],
    });
    expect(await messageOf(failing)).toBe(
      `Offset (${BYTES + 512}) cannot be greater than size of the containing file (${BYTES})`,
    );
    expect(table.get("fa").limits.requestAlignment).toBe(1);
    expect([locksOf(paths.a), locksOf(paths.b)]).toEqual([LOCKED, []]);
    expect([fdOf("r"), openFilesOf(paths.a)]).toEqual([fdOf("fa"), 1]);
  });

  test("goes all the way back when somebody else has the other file", async () => {
    const other = new NodeTable({ reactor, drivers: [file], log: (text) => logged.push(text) });
    await runOn(reactor, () => other.calls["node-open"](fileB()));
    const alone = permissions("fb", USED, PERM_ALL & ~PERM_WRITE);
    await runOn(reactor, () => other.calls["node-permissions"]({ nodes: [alone] }));
    await open(fileA());
    await open(fileB());
    await open(window("fa", 512));
    await give(permissions("r", USED, PERM_ALL), permissions("fa", USED, SHARED));
    const failing = begin({
      nodes: [window("fb", 0)],
      permissions: [permissions("fa", 0, PERM_ALL), permissions("fb", USED, SHARED)],
    });
    expect(await messageOf(failing)).toBe('Failed to get "write" lock');
    expect(fdOf("r")).toBe(fdOf("fa"));
    expect([locksOf(paths.a), locksOf(paths.b)]).toEqual([LOCKED, [100, 101, 201]]);
    await runOn(reactor, () => other.closeAll());
  });

  test("refuses an alignment that a window above the file does not have", async () => {
    await open(fileA());
    await open(window("fa", 256));
    const direct = { nodes: [fileA({ cacheDirect: true })], connected: ["fa", "r"] };
    expect(await messageOf(begin(direct))).toContain(
      "Offset (256) is not a multiple of the request alignment",
    );
    expect(table.get("r").limits.requestAlignment).toBe(1);
  });

  test("refuses an alignment with which a writer would make the disk longer", async () => {
    await open(definition("n", "null-co", { options: { size: 1536 } }));
    await open(definition("d", "blkdebug", { options: { align: 4096 }, children: { image: "n" } }));
    await open(definition("r", "raw", { children: { file: "n" } }));
    const reopen = (used: number) =>
      begin({
        nodes: [definition("r", "raw", { children: { file: "d" } })],
        permissions: [permissions("r", used, PERM_ALL)],
        connected: ["n", "d", "r"],
      });
    await give(permissions("r", PERM_WRITE, PERM_ALL));
    expect(await messageOf(reopen(PERM_WRITE))).toContain("not a multiple of request alignment");
    expect(table.get("r").limits.requestAlignment).toBe(1);
    await end(await reopen(PERM_CONSISTENT_READ), true);
    expect(table.get("r").limits.requestAlignment).toBe(4096);
  });

  test("takes no node whose data does not reach the disk", async () => {
    await open(fileA());
    const node = table.get("fa");
    node.flush = async () => -5;
    expect(await messageOf(begin({ nodes: [fileA({ readOnly: true })] }))).toBe(
      "Error flushing drive: Input/output error",
    );
    expect(node.writable).toBe(true);
    node.flush = async () => 0;
  });

  test("opens with auto-read-only for what is asked of it", async () => {
    await open(fileA());
    await end(await begin({ nodes: [fileA({ autoReadOnly: true })] }), true);
    const flags = () => reactor.linux.fcntl(fdOf("fa"), 3) & 3;
    expect([table.get("fa").writable, flags()]).toEqual([true, 0]);
    await give(permissions("fa", USED, SHARED));
    expect([flags(), locksOf(paths.a)]).toEqual([O_RDWR, LOCKED]);
    await give(permissions("fa", PERM_CONSISTENT_READ, PERM_ALL));
    expect([flags(), locksOf(paths.a)]).toEqual([0, [100]]);
  });
});

describe("node-permissions", () => {
  test("tells what is inactive, and measures what others may have changed", async () => {
    await open(fileA({ active: false }));
    const node = table.get("fa");
    expect(isInactive(node)).toBe(true);
    writeFileSync(paths.a, new Uint8Array(2 * BYTES));
    await give({ ...permissions("fa", USED, SHARED) });
    expect([isInactive(node), node.bytes]).toEqual([false, 2 * BYTES]);
    await give({ ...permissions("fa", 0, PERM_ALL), active: false });
    expect([isInactive(node), locksOf(paths.a)]).toEqual([true, []]);
  });

  test("takes over the locks of an open file that another thread still holds", async () => {
    await open(fileA());
    const exclusive = permissions("fa", USED, PERM_ALL & ~PERM_WRITE);
    await give(exclusive);
    const other = new NodeTable({ reactor, drivers: [file], log: (text) => logged.push(text) });
    await runOn(reactor, () => other.calls["node-open"](fileA()));
    const take = (handedOver: boolean) =>
      runOn(reactor, () => other.calls["node-permissions"]({ nodes: [exclusive], handedOver }));
    expect(await messageOf(take(false))).toBe('Failed to get "write" lock');
    await take(true);
    await runOn(reactor, () => table.closeAll());
    expect(locksOf(paths.a)).toEqual([100, 101, 201]);
    await runOn(reactor, () => other.closeAll());
    expect(locksOf(paths.a)).toEqual([]);
  });
});
