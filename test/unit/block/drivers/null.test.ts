import { describe, expect, test } from "bun:test";
import { nullAio, nullCo } from "../../../../src/block/drivers/null.ts";
import {
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  REQ_NO_FALLBACK,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_ZERO,
  ZERO,
} from "../../../../src/block/node.ts";
import { ENOTSUP } from "../../../../src/runtime/errno.ts";
import { extentsOf, openContext, Payload } from "../../../support/block.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const out = { fd: -1, offset: 0, bytes: 0 };

function open(options: Record<string, unknown>, driver = nullCo) {
  return driver.open(openContext(reactor, { options }));
}

describe("null-co", () => {
  test("is 1 GiB of nothing in particular by default", async () => {
    const node = await open({});
    expect(node.bytes).toBe(2 ** 30);
    expect(node.resolve(OP_READ, 512, 1024, out)).toBe(ZERO);
    expect(out.bytes).toBe(1024);
    expect(node.resolve(OP_WRITE, 0, 512, out)).toBe(ZERO);
    expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(ZERO);
    expect(await extentsOf(reactor, node, 0, 4096)).toEqual([[0, 4096]]);
    expect(node.describe().exactFilename).toBe("null-co://");
  });

  test("promises zeroes with read-zeroes", async () => {
    const node = await open({ size: 1000, "read-zeroes": true });
    expect(node.bytes).toBe(1024);
    expect(await extentsOf(reactor, node, 0, 1024)).toEqual([
      [STATUS_ZERO | STATUS_ALLOCATED, 1024],
    ]);
    // These options make another disk of it; latency makes none.
    expect(node.describe().exactFilename).toBeUndefined();
    expect((await open({ "latency-ns": 1 })).describe().exactFilename).toBe("null-co://");
  });

  test("takes its time with latency-ns", async () => {
    const node = await open({ "latency-ns": 20_000_000 }, nullAio);
    expect(node.resolve(OP_READ, 0, 512, out)).toBe(SLOW);
    const payload = new Payload(reactor, 512);
    payload.u8.fill(0xff);
    const startNs = reactor.nowNs();
    expect(await runOn(reactor, () => node.read(0, 512, payload.address))).toBe(0);
    expect(reactor.nowNs() - startNs).toBeGreaterThanOrEqual(20_000_000);
    expect(payload.u8.every((byte) => byte === 0)).toBe(true);
  });

  test("refuses fast write-zeroes, as QSD does", async () => {
    const node = await open({});
    expect(await runOn(reactor, () => node.writeZeroes(0, 512, REQ_NO_FALLBACK))).toBe(-ENOTSUP);
    expect(await runOn(reactor, () => node.writeZeroes(0, 512, 0))).toBe(0);
  });

  test("refuses sizes that make no sense", async () => {
    await expect(open({ size: -1 })).rejects.toThrow(
      "Value '-1' is out of range for parameter 'size'",
    );
    await expect(open({ size: 2 ** 53 - 1 })).rejects.toThrow(
      "Could not refresh total sector count: File too large",
    );
  });
});
