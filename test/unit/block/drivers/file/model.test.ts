/** A file through its backend against a plain array of bytes, under random operations. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { BlockBackend } from "../../../../../src/block/backend.ts";
import type { OpenContext } from "../../../../../src/block/driver.ts";
import { file } from "../../../../../src/block/drivers/file/index.ts";
import { raw } from "../../../../../src/block/drivers/raw.ts";
import {
  type BlockNode,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  REQ_FUA,
  REQ_MAY_UNMAP,
  STATUS_ZERO,
} from "../../../../../src/block/node.ts";
import { extentsOf, openContext, Payload } from "../../../../support/block.ts";
import { pattern } from "../../../../support/images.ts";
import { Random, randomSeed } from "../../../../support/random.ts";
import { ENGINES, makeReactor, runOn } from "../../../../support/reactor.ts";

const SEED = randomSeed();

/** The file ends inside its last sector, the node with a page: O_DIRECT writes need that. */
const FILE_BYTES = 74 * 4096 - 179;
const STEPS = 150;
const TRANSFER_MAX = 64 * 1024;

const directories = [tmpdir(), "/dev/shm"]
  .filter((parent) => existsSync(parent))
  .map((parent) => mkdtempSync(join(parent, "outport-model-")));
afterAll(() => {
  for (const directory of directories) rmSync(directory, { recursive: true });
});

const VARIANTS: readonly (readonly [string, Partial<OpenContext>, number])[] = [
  ["buffered", {}, 0],
  ["unmapping", { discardUnmap: true, detectZeroes: "unmap" }, 0],
  ["direct", { cacheDirect: true, discardUnmap: true }, 0],
  ["direct, detecting zeroes", { cacheDirect: true, detectZeroes: "on" }, 0],
  ["in a window", { discardUnmap: true }, 4096],
  ["direct in a window", { cacheDirect: true, discardUnmap: true }, 4096],
];

const places = ENGINES.flatMap((engine) => directories.map((directory) => ({ engine, directory })));
for (const { engine, directory } of places) {
  describe(`a file in ${dirname(directory)} on ${engine} keeps its bytes`, () => {
    const reactor = makeReactor(engine);
    const payload = new Payload(reactor, 2 * TRANSFER_MAX);

    for (const [name, some, window] of VARIANTS) {
      test(name, async () => {
        const random = new Random(SEED);
        const path = join(directory, "image");
        const content = Buffer.alloc(Math.ceil(FILE_BYTES / 512) * 512);
        content.set(pattern(FILE_BYTES));
        writeFileSync(path, content.subarray(0, FILE_BYTES));

        const run = <Result>(task: () => Promise<Result>) => runOn(reactor, task);
        const options = { filename: path };
        const child = await run(() => file.open(openContext(reactor, { ...some, options })));
        await child.setPermissions(PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
        let node: BlockNode = child;
        if (window > 0) {
          const children = { file: child };
          const context = openContext(reactor, { ...some, children, options: { offset: window } });
          node = await run(() => raw.open(context));
        }
        const backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
        const model = content.subarray(window);
        expect(node.bytes).toBe(model.length);

        const tail = model.length - 8192;
        expect(await run(() => backend.request(OP_READ, tail, 8192, payload.address, 0))).toBe(0);
        expect(model.subarray(tail).equals(payload.u8.subarray(0, 8192))).toBe(true);
        for (let step = 0; step < STEPS; step++) {
          const whole = random.below(2) === 0 ? 4096 : 1;
          const offset = random.below(Math.floor(node.bytes / whole)) * whole;
          const bytes = Math.min(1 + random.below(TRANSFER_MAX), node.bytes - offset);
          const at = random.below(2) === 0 ? 0 : random.below(TRANSFER_MAX);
          const address = payload.address + at;
          const flags = random.below(4) === 0 ? REQ_FUA : 0;
          const where = `step ${step}: ${bytes} bytes at ${offset}`;
          const request = (op: Parameters<typeof backend.request>[0], more = 0) =>
            run(() => backend.request(op, offset, bytes, address, flags | more));
          const action = random.below(8);
          if (action < 3) {
            const data = random.below(3) === 0 ? Buffer.alloc(bytes) : pattern(bytes, step + 2);
            payload.u8.set(data, at);
            expect([where, await request(OP_WRITE)]).toEqual([where, 0]);
            model.set(data, offset);
          } else if (action === 3) {
            const more = random.below(2) === 0 ? REQ_MAY_UNMAP : 0;
            expect([where, await request(OP_WRITE_ZEROES, more)]).toEqual([where, 0]);
            model.fill(0, offset, offset + bytes);
          } else if (action === 4) {
            expect([where, await request(OP_DISCARD)]).toEqual([where, 0]);
            // What was discarded is anything: here, what it reads as from now on.
            expect([where, await request(OP_READ)]).toEqual([where, 0]);
            model.set(payload.u8.subarray(at, at + bytes), offset);
          } else if (action === 5) {
            expect(await run(() => backend.request(OP_FLUSH, 0, 0, 0, 0))).toBe(0);
          } else {
            payload.u8.fill(0xee);
            expect([where, await request(OP_READ)]).toEqual([where, 0]);
            const read = Buffer.from(payload.u8.subarray(at, at + bytes));
            expect([where, read.equals(model.subarray(offset, offset + bytes))]).toEqual([
              where,
              true,
            ]);
            expect(payload.u8[at + bytes]).toBe(0xee);
          }
        }
        let at = 0;
        for (const [flags, bytes] of await extentsOf(reactor, node, 0, node.bytes)) {
          const isHole = (flags & STATUS_ZERO) !== 0;
          expect(isHole && model.subarray(at, at + bytes).some((byte) => byte !== 0)).toBe(false);
          at += bytes;
        }
        expect(await run(() => backend.close())).toBe(0);
        await node.close();
        if (node !== child) await child.close();
        const final = readFileSync(path);
        expect(final.equals(content.subarray(0, final.length))).toBe(true);
        expect(content.subarray(final.length).every((byte) => byte === 0)).toBe(true);
      });
    }
  });
}
