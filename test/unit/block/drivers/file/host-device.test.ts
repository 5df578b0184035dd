/** host_device on a loop device; needs root, and says so where it is skipped. */
import { afterAll, describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import type { OpenContext } from "../../../../../src/block/driver.ts";
import { hostDevice } from "../../../../../src/block/drivers/file/index.ts";
import { STATUS_ALLOCATED, STATUS_DATA } from "../../../../../src/block/node.ts";
import { ENOTSUP } from "../../../../../src/runtime/errno.ts";
import { extentsOf, openContext, Payload } from "../../../../support/block.ts";
import { pattern } from "../../../../support/images.ts";
import { ENGINES, makeReactor, runOn } from "../../../../support/reactor.ts";

const BYTES = 1024 * 1024;
const directory = mkdtempSync(join(tmpdir(), "outport-device-"));
const image = join(directory, "image");
const loops: string[] = [];

function attach(...options: string[]): string | undefined {
  try {
    const args = ["-f", "--show", ...options, image];
    const loop = execFileSync("losetup", args, { stdio: "pipe" }).toString().trim();
    loops.push(loop);
    return loop;
  } catch {
    return undefined;
  }
}

function detach(): void {
  for (const loop of loops.splice(0)) execFileSync("losetup", ["-d", loop]);
}

writeFileSync(image, pattern(BYTES));
const hasLoops = attach() !== undefined;
detach();
if (!hasLoops) console.warn("host_device is not tested: no loop devices here");

afterAll(() => {
  detach();
  rmSync(directory, { recursive: true });
});

for (const engine of hasLoops ? ENGINES : []) {
  describe(`host_device on ${engine}`, () => {
    const reactor = makeReactor(engine);
    const payload = new Payload(reactor, 64 * 1024);
    const open = (filename: string, some: Partial<OpenContext> = {}) =>
      runOn(reactor, () =>
        hostDevice.open(openContext(reactor, { ...some, options: { filename } })),
      );

    test("reads, writes, zeroes and discards a block device", async () => {
      const content = Buffer.from(pattern(BYTES));
      writeFileSync(image, content);
      const node = await open(attach()!, { discardUnmap: true });
      expect(node.bytes).toBe(BYTES);
      expect(node.isKnownData(0, BYTES)).toBe(true);
      expect(await extentsOf(reactor, node, 0, BYTES)).toEqual([
        [STATUS_DATA | STATUS_ALLOCATED, BYTES],
      ]);
      payload.u8.set(pattern(5000, 7));
      expect(await runOn(reactor, () => node.write(1000, 5000, payload.address, 0))).toBe(0);
      content.set(pattern(5000, 7), 1000);
      expect(await runOn(reactor, () => node.writeZeroes(8192, 4096, 0))).toBe(0);
      content.fill(0, 8192, 12288);
      expect(await runOn(reactor, () => node.writeZeroes(100, 50, 0))).toBe(-ENOTSUP);
      expect(await runOn(reactor, () => node.flush())).toBe(0);
      // A loop device punches its file: what was discarded reads as zeroes.
      expect(await runOn(reactor, () => node.discard(65536, 65536))).toBe(0);
      content.fill(0, 65536, 131072);
      expect(await runOn(reactor, () => node.flush())).toBe(0);
      expect(await runOn(reactor, () => node.read(0, 65536, payload.address))).toBe(0);
      expect(Buffer.from(payload.u8).equals(content.subarray(0, 65536))).toBe(true);
      await node.close();
      detach();
      expect(readFileSync(image).equals(content)).toBe(true);
    });

    test("takes its alignment from the device", async () => {
      const loop = attach("-b", "4096")!;
      const direct = await open(loop, { cacheDirect: true });
      expect(direct.limits.requestAlignment).toBe(4096);
      expect(direct.limits.discardAlignment).toBe(4096);
      const buffered = await open(loop);
      expect(buffered.limits.requestAlignment).toBe(1);
      await Promise.all([direct.close(), buffered.close()]);
      detach();
    });

    test("tells of the device's limits, which bind nobody", async () => {
      const loop = attach("-b", "4096")!;
      const buffered = await open(loop);
      const queue = (name: string) => {
        const path = `/sys/block/${basename(loop)}/queue/${name}`;
        return Number(readFileSync(path, "ascii"));
      };
      const limits = {
        "request-alignment": 1,
        "min-mem-alignment": 1,
        "max-hw-transfer": queue("max_sectors_kb") * 1024,
        "max-hw-iov": queue("max_segments"),
        "discard-alignment": queue("discard_granularity"),
        "write-zeroes-alignment": 4096,
      };
      expect(buffered.describe().limits).toEqual(limits);
      const direct = await open(loop, { cacheDirect: true });
      expect(direct.describe().limits).not.toHaveProperty("write-zeroes-alignment");
      await Promise.all([direct.close(), buffered.close()]);
      detach();
    });

    test("truncate() can't change a device, but sees that it has grown", async () => {
      writeFileSync(image, pattern(BYTES));
      const loop = attach()!;
      const node = await open(loop);
      await expect(runOn(reactor, () => node.truncate!(BYTES + 1))).rejects.toThrow(
        "Cannot grow device files",
      );
      await runOn(reactor, () => node.truncate!(4096));
      node.refreshLength!();
      expect(node.bytes).toBe(BYTES);
      writeFileSync(image, pattern(2 * BYTES));
      execFileSync("losetup", ["-c", loop]);
      await runOn(reactor, () => node.truncate!(0));
      node.refreshLength!();
      expect(node.bytes).toBe(2 * BYTES);
      await node.close();
      detach();
      writeFileSync(image, pattern(BYTES));
    });

    test("refuses to write to a read-only device", async () => {
      const loop = attach("-r")!;
      await expect(open(loop)).rejects.toThrow("The device is not writable: Permission denied");
      const node = await open(loop, { autoReadOnly: true });
      await expect(node.setPermissions(2, 15)).rejects.toThrow(
        "The device is not writable: Permission denied",
      );
      await node.close();
      detach();
    });
  });
}
