import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OP_CACHE, OP_WRITE_ZEROES, type Op } from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { emptyImage } from "../../../../support/qcow2-header.ts";
import { openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 65536;
const COUNT = 600;

describe("more requests than there are buffers for", () => {
  let folder: string;
  let reactor: Reactor;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "outport-qcow2-"));
    writeFileSync(join(folder, "backing.raw"), new Uint8Array(COUNT * CLUSTER).fill(3));
    reactor = makeReactor("epoll");
  });

  afterAll(() => {
    expect([reactor.requests.inUse, reactor.buffers.bytesInUse]).toEqual([0, 0]);
    reactor.engine.close();
    reactor.memory.unmap();
    rmSync(folder, { recursive: true });
  });

  const kinds: Record<string, readonly Op[]> = {
    zeroes: [OP_WRITE_ZEROES],
    copies: [OP_CACHE],
    both: [OP_WRITE_ZEROES, OP_CACHE],
  };
  for (const [name, ops] of Object.entries(kinds)) {
    test(`all end: ${name}`, async () => {
      const path = join(folder, `${name}.qcow2`);
      writeFileSync(path, emptyImage());
      const backing = { path: join(folder, "backing.raw"), format: "raw" as const };
      const image = await openQcow2(reactor, { path, backing });
      const ended: number[] = [];
      const all = Promise.all(
        Array.from({ length: COUNT }, async (_, i) => {
          const op = ops[i % ops.length]!;
          const bytes = op === OP_CACHE ? CLUSTER : CLUSTER - 512;
          // Two at a time want the same cluster.
          const at = Math.floor(i / 2) * CLUSTER;
          ended.push(await image.backend.request(op, at, bytes, 0, 0));
        }),
      );
      await runOn(reactor, () => all);
      expect(ended).toEqual(new Array(COUNT).fill(0));
      await image.close();
    }, 60_000);
  }
});
