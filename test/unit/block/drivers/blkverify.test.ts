import { describe, expect, test } from "bun:test";
import { blkverify } from "../../../../src/block/drivers/blkverify.ts";
import { OP_FLUSH, OP_WRITE } from "../../../../src/block/node.ts";
import { EIO } from "../../../../src/runtime/errno.ts";
import { openContext, Payload } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const reactor = makeReactor("epoll");

async function open(testBytes = 65_536, rawBytes = 65_536) {
  const children = {
    test: new FakeNode(reactor, testBytes),
    raw: new FakeNode(reactor, rawBytes),
  };
  const said: string[] = [];
  const log = (text: string) => void said.push(text);
  const node = await blkverify.open(openContext(reactor, { children, log }));
  return { node, said, ...children };
}

describe("blkverify", () => {
  test("writes to both and reads what both have", async () => {
    const { node, test: image, raw, said } = await open();
    const payload = new Payload(reactor, 4096);
    payload.u8.fill(9);
    expect(await runOn(reactor, () => node.write(512, 4096, payload.address, 0))).toBe(0);
    expect(image.data).toEqual(raw.data);
    expect(raw.data[512]).toBe(9);
    payload.u8.fill(0);
    expect(await runOn(reactor, () => node.read(512, 4096, payload.address))).toBe(0);
    expect(payload.u8.every((byte) => byte === 9)).toBe(true);
    expect(said).toEqual([]);
  });

  test("a different byte fails the read and is told of, with its place", async () => {
    const { node, raw, said } = await open();
    raw.data[5000] = 1;
    const payload = new Payload(reactor, 4096);
    expect(await runOn(reactor, () => node.read(0, 4096, payload.address))).toBe(0);
    expect(await runOn(reactor, () => node.read(4096, 4096, payload.address))).toBe(-EIO);
    expect(said).toEqual(["blkverify: read offset=4096 bytes=4096 contents mismatch at 5000"]);
  });

  test("results that differ fail the request", async () => {
    const { node, raw, said } = await open();
    raw.fails = (op) => (op === OP_WRITE ? -28 : 0);
    const payload = new Payload(reactor, 512);
    expect(await runOn(reactor, () => node.write(0, 512, payload.address, 0))).toBe(-EIO);
    expect(said[0]).toContain("return value mismatch 0 != -28");
  });

  test("the same failure on both is that failure", async () => {
    const { node, raw, test: image, said } = await open();
    raw.fails = () => -28;
    image.fails = () => -28;
    const payload = new Payload(reactor, 512);
    expect(await runOn(reactor, () => node.read(0, 512, payload.address))).toBe(-28);
    expect(said).toEqual([]);
  });

  test("a shorter raw node is a mismatch past its end", async () => {
    const { node, said } = await open(65_536, 4096);
    const payload = new Payload(reactor, 4096);
    expect(node.bytes).toBe(65_536);
    expect(await runOn(reactor, () => node.read(4096, 4096, payload.address))).toBe(-EIO);
    expect(said.length).toBe(1);
  });

  test("lets go on at once what waits in either when it is drained", async () => {
    const { node, raw, test: image } = await open();
    const done: string[] = [];
    for (const [name, child] of Object.entries({ raw, image })) {
      Object.assign(child, {
        drainBegin: () => done.push(`${name} begins`),
        drainEnd: () => done.push(`${name} ends`),
      });
    }
    node.drainBegin!();
    expect(done.sort()).toEqual(["image begins", "raw begins"]);
    node.drainEnd!();
    expect(done.slice(2).sort()).toEqual(["image ends", "raw ends"]);
  });

  test("flushes only the node under test", async () => {
    const { node, raw, test: image } = await open();
    expect(await runOn(reactor, () => node.flush())).toBe(0);
    expect(image.calls.map(({ op }) => op)).toEqual([OP_FLUSH]);
    expect(raw.calls).toEqual([]);
  });
});
