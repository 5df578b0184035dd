import { describe, expect, test } from "bun:test";
import { blkdebug } from "../../../../../src/block/drivers/blkdebug/index.ts";
import {
  ALIGNMENT_MAX,
  OP_DISCARD,
  OP_READ,
  OP_WRITE_ZEROES,
  PERM_ALL,
  PERM_RESIZE,
  PERM_WRITE,
  SLOW,
} from "../../../../../src/block/node.ts";
import { ENOTSUP } from "../../../../../src/runtime/errno.ts";
import { openContext, Payload } from "../../../../support/block.ts";
import { FakeNode } from "../../../../support/fake-node.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const KiB64 = 65_536;

async function open(options: Record<string, unknown>, image = new FakeNode(reactor, KiB64)) {
  const context = openContext(reactor, { options, discardUnmap: true, children: { image } });
  return { image, node: await runOn(reactor, () => blkdebug.open(context)) };
}

describe("blkdebug", () => {
  test("lets requests through that no rule is for", async () => {
    const { node, image } = await open({});
    const payload = new Payload(reactor, 512);
    payload.u8.fill(7);
    expect(node.resolve(OP_READ, 0, 512, { fd: -1, offset: 0, bytes: 0 })).toBe(SLOW);
    expect(await runOn(reactor, () => node.write(512, 512, payload.address, 0))).toBe(0);
    payload.u8.fill(0);
    expect(await runOn(reactor, () => node.read(512, 512, payload.address))).toBe(0);
    expect(payload.u8.every((byte) => byte === 7)).toBe(true);
    expect(await runOn(reactor, () => node.flush())).toBe(0);
    expect(image.data[512]).toBe(7);
    expect(node.bytes).toBe(KiB64);
  });

  test("fails each kind of request, and the image does not see it", async () => {
    const { node, image } = await open({ "inject-error": [{ event: "none", errno: 28 }] });
    const payload = new Payload(reactor, 512);
    const results = await runOn(reactor, () =>
      Promise.all([
        node.read(0, 512, payload.address),
        node.write(0, 512, payload.address, 0),
        node.writeZeroes(0, 512, 0),
        node.discard(0, 512),
        node.flush(),
      ]),
    );
    expect(results).toEqual([-28, -28, -28, -28, -28]);
    expect(image.calls).toEqual([]);
  });

  test("writes raise the events pwritev and pwritev_done", async () => {
    const { node } = await open({
      "inject-error": [
        { event: "pwritev", state: 2, iotype: "write" },
        { event: "pwritev_done", iotype: "flush", errno: 6 },
      ],
      "set-state": [{ event: "pwritev_done", new_state: 2 }],
    });
    const payload = new Payload(reactor, 512);
    const write = () => runOn(reactor, () => node.write(0, 512, payload.address, 0));
    expect(await runOn(reactor, () => node.flush())).toBe(0);
    expect(await write()).toBe(0);
    expect(await runOn(reactor, () => node.flush())).toBe(-6);
    expect(await write()).toBe(-5);
  });

  test("splits and refuses zero requests and discards by its limits", async () => {
    const { node, image } = await open({
      "opt-write-zero": 4096,
      "max-write-zero": 8192,
      "max-discard": 16_384,
    });
    expect(await runOn(reactor, () => node.writeZeroes(512, 4096, 0))).toBe(-ENOTSUP);
    expect(await runOn(reactor, () => node.writeZeroes(0, 20_480, 0))).toBe(0);
    expect(await runOn(reactor, () => node.discard(0, 20_000))).toBe(0);
    expect(image.calls.map(({ op, offset, bytes }) => [op, offset, bytes])).toEqual([
      [OP_WRITE_ZEROES, 0, 8192],
      [OP_WRITE_ZEROES, 8192, 8192],
      [OP_WRITE_ZEROES, 16_384, 4096],
      [OP_DISCARD, 0, 16_384],
      [OP_DISCARD, 16_384, 3616],
    ]);
  });

  test("delays", async () => {
    const { node } = await open({
      "inject-error": [{ event: "none", errno: 0, "delay-ns": 20_000_000 }],
    });
    const began = reactor.nowNs();
    expect(await runOn(reactor, () => node.flush())).toBe(0);
    expect(reactor.nowNs() - began).toBeGreaterThanOrEqual(20_000_000);
  });

  test("does not inject again after a move what was for once", async () => {
    const options = { "inject-error": [{ event: "none", errno: 28, once: true }] };
    const { node } = await open(options);
    const early = structuredClone(node.handOver!());
    expect(await runOn(reactor, () => node.flush())).toBe(-28);
    const late = structuredClone(node.handOver!());
    for (const [handedOver, results] of [
      [early, [-28, 0]],
      [late, [0, 0]],
    ] as const) {
      const children = { image: new FakeNode(reactor, KiB64) };
      const moved = await blkdebug.open(openContext(reactor, { options, children, handedOver }));
      const first = await runOn(reactor, () => moved.flush());
      expect([first, await runOn(reactor, () => moved.flush())]).toEqual([...results]);
    }
  });

  test("takes its alignment and transfer limit", async () => {
    const { node } = await open({ align: 4096, "max-transfer": 65_536 });
    expect(node.limits.requestAlignment).toBe(4096);
    expect(node.limits.transferBytesMax).toBe(65_536);
  });

  const refused: [Record<string, unknown>, string][] = [
    [{ align: 3 }, "Cannot meet constraints with align 3"],
    [{ align: -1 }, "Value '-1' is out of range for parameter 'align'"],
    // What is read and written in its place would not fit its buffer.
    [{ align: 2 * ALIGNMENT_MAX }, "Cannot meet constraints with align 524288"],
    [{ align: 2 ** 40 }, "Cannot meet constraints with align 1099511627776"],
    [{ align: 512, "max-transfer": 100 }, "Cannot meet constraints with max-transfer 100"],
    [{ align: 512, "opt-write-zero": 3 }, "Cannot meet constraints with opt-write-zero 3"],
    [
      { "opt-write-zero": 4096, "max-write-zero": 4095 },
      "Cannot meet constraints with max-write-zero 4095",
    ],
    [{ align: 512, "opt-discard": 100 }, "Cannot meet constraints with opt-discard 100"],
    [{ align: 512, "max-discard": 100 }, "Cannot meet constraints with max-discard 100"],
    [{ config: "/nowhere/rules" }, "Could not open '/nowhere/rules': No such file or directory"],
  ];
  for (const [options, message] of refused) {
    test(`refuses ${JSON.stringify(options)}`, async () => {
      await expect(open(options)).rejects.toThrow(message);
    });
  }

  test("childPermissions() takes and forbids what it is told to", () => {
    const options = { "take-child-perms": ["write"], "unshare-child-perms": ["resize"] };
    const asked = blkdebug.childPermissions!("image", { used: 0, shared: PERM_ALL }, options, true);
    expect(asked).toEqual({ used: PERM_WRITE, shared: PERM_ALL & ~PERM_RESIZE });
  });
});
