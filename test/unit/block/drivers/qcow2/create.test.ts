import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { file } from "../../../../../src/block/drivers/file/index.ts";
import { qcow2 } from "../../../../../src/block/drivers/qcow2/index.ts";
import { ImageCreations } from "../../../../../src/block/image-creations.ts";
import type { BlockNode } from "../../../../../src/block/node.ts";
import { PERM_ALL } from "../../../../../src/block/node.ts";
import { EIO } from "../../../../../src/runtime/errno.ts";
import { openContext } from "../../../../support/block.ts";
import { checkImage, describeCorruptions, openImage } from "../../../../support/qcow2-reader.ts";
import { Random, randomSeed } from "../../../../support/random.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const folder = mkdtempSync(join(tmpdir(), "qcow2-create-"));
afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
  rmSync(folder, { recursive: true });
});

const KiB = 1024;

interface Made {
  readonly path: string;
  /** What the creation says; "success" when it does not fail. */
  readonly said: string;
}

/** `before`: what was in the file; the file is as long as it is to be. */
async function make(
  options: Record<string, unknown>,
  { before = 0, change = (_node: BlockNode, _cancel: () => void) => {} } = {},
): Promise<Made> {
  const path = join(folder, "image");
  const { file: plan } = qcow2.creation!.plan!(options, ["file"]);
  writeFileSync(path, Buffer.alloc(plan!.bytes, before));
  const node = await runOn(reactor, () =>
    file.open(openContext(reactor, { options: { filename: path } })),
  );
  await runOn(reactor, () => node.setPermissions(0, PERM_ALL));
  const { calls } = new ImageCreations({ reactor, drivers: [qcow2], getNode: () => node });
  change(node, () => void calls["image-create-cancel"]({ jobId: "j" }));
  const said = await runOn(reactor, async () => {
    const creating = calls["image-create"]({
      jobId: "j",
      driver: "qcow2",
      options,
      targets: { file: { nodeName: "node0", filename: path } },
      servedDevices: [],
    });
    return creating.then(() => "success", messageOfError);
  });
  await runOn(reactor, () => node.close());
  return { path, said };
}

const messageOfError = (error: Error) => error.message;

describe("a new qcow2 image", () => {
  test("has no flaw and reads as zeroes, whatever it is like and was there", async () => {
    const random = new Random(randomSeed());
    for (let i = 0; i < 15; i++) {
      const hasSubclusters = random.chance(0.3);
      const clusterBytes = 2 ** (hasSubclusters ? 14 + random.below(3) : 9 + random.below(8));
      const options = {
        size: 512 * (1 + random.below(4000)),
        "cluster-size": clusterBytes,
        "refcount-bits": 2 ** random.below(7),
        "extended-l2": hasSubclusters,
        preallocation: random.pick(["off", "metadata", "falloc", "full"]),
        "lazy-refcounts": random.chance(0.5),
      };
      const { path, said } = await make(options, { before: random.pick([0, 0xa5]) });
      expect(said).toBe("success");
      const image = openImage(path);
      const result = checkImage(image);
      expect(describeCorruptions(result)).toBe("");
      expect(result.leaks).toEqual([]);
      expect(image.bytes).toBe(options.size);
      expect(image.read(0, options.size).every((byte) => byte === 0)).toBe(true);
    }
  });

  test("is none before all of it is there", async () => {
    let writes = 0;
    const { path, said } = await make(
      { size: 512 * KiB, "cluster-size": 512, preallocation: "metadata" },
      {
        change: (node) => {
          const { resolve } = node;
          node.resolve = (op, offset, bytes, out) => {
            if (op === 1) writes++;
            const kind = resolve.call(node, op, offset, bytes, out);
            // The third write goes nowhere.
            if (op === 1 && writes === 3) out.fd = -1;
            return kind;
          };
        },
      },
    );
    expect(writes).toBeGreaterThanOrEqual(3);
    expect(said).toContain("Could not write the image: ");
    expect(() => openImage(path)).toThrow();
  });

  test("is given up when nobody wants it any more", async () => {
    const { path, said } = await make(
      { size: 4096 * KiB, preallocation: "full" },
      {
        change: (node, cancel) => {
          const { blockStatus } = node;
          node.blockStatus = (...args) => {
            cancel();
            return blockStatus.apply(node, args);
          };
        },
      },
    );
    expect(said).toBe("Operation canceled");
    expect(() => openImage(path)).toThrow();
  });

  test("fails when it is not known what is there", async () => {
    const { said } = await make(
      { size: 512 },
      { change: (node) => Object.assign(node, { blockStatus: () => -EIO }) },
    );
    expect(said).toBe("Could not look at what is there: Input/output error");
  });
});
