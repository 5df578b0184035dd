import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import * as fuse from "../../../../src/abi/fuse.ts";
import * as file from "../../../../src/abi/fuse-file.ts";
import { O_RDWR } from "../../../../src/abi/linux.ts";
import { OP_FLUSH } from "../../../../src/block/node.ts";
import { FuseService } from "../../../../src/exports/fuse/service.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import type { IothreadEvent } from "../../../../src/iothread/messages.ts";
import { EIO } from "../../../../src/runtime/errno.ts";
import { driver } from "../../../support/driver.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import {
  FuseKernel,
  fields,
  fuseSockets,
  readArgs,
  writeArgs,
} from "../../../support/fuse-kernel.ts";
import { messageOf } from "../../../support/iothread.ts";
import { ENGINES, makeReactor, runOn } from "../../../support/reactor.ts";

const MiB = 1024 * 1024;

for (const engine of ENGINES) {
  describe(`FuseService on ${engine}`, () => {
    let reactor: Reactor;
    let node: FakeNode;
    let service: FuseService;
    let events: IothreadEvent[];
    let logged: string[];
    let kernel: FuseKernel;
    let fd: number;
    let resizeTo: (bytes: number) => Promise<number>;

    const turn = async () => {
      reactor.turn(1_000_000);
      await driver.runMicrotasks();
    };
    const params = () => ({
      id: "e",
      type: "fuse",
      nodeName: "fake",
      writable: true,
      writethrough: false,
      options: { fd, growable: true, allowOther: true, uid: 1, gid: 2 },
    });
    const run = <T>(task: () => Promise<T>) => runOn(reactor, task);
    const request = (opcode: number, args?: Uint8Array) => kernel.request(opcode, args);
    const modeOf = async () => {
      const { data } = await request(fuse.FUSE_GETATTR, new Uint8Array(16));
      const at = file.FUSE_ATTR_OUT_ATTR + file.FUSE_ATTR_MODE;
      return new DataView(data.buffer).getUint32(at, true);
    };

    beforeEach(async () => {
      reactor = makeReactor(engine);
      node = new FakeNode(reactor, MiB);
      events = [];
      logged = [];
      resizeTo = async () => 0;
      const pair = fuseSockets(reactor.linux);
      fd = pair[0];
      kernel = new FuseKernel(reactor.linux, pair[1], turn);
      service = new FuseService({
        reactor,
        findNode: () => node,
        resizeNode: (_nodeName, bytes) => resizeTo(bytes),
        send: (event) => events.push(event),
        log: (_level, text) => logged.push(text),
      });
      await run(() => service.open(params()));
      const init = { 0: 7, 4: 31, 8: 4096 };
      const reply = await request(fuse.FUSE_INIT, fields(fuse.FUSE_INIT_IN_SIZE, init));
      expect(reply.error).toBe(0);
    });

    afterEach(() => {
      kernel.closeKernel();
      reactor.linux.close(fd);
      expect(reactor.buffers.bytesInUse).toBe(0);
      reactor.engine.close();
      reactor.memory.unmap();
    });

    test("close() ends what is in flight, flushes, and leaves the descriptor alone", async () => {
      node.hold();
      const write = kernel.send(fuse.FUSE_WRITE, writeArgs(0, new Uint8Array(512)));
      await turn();
      const closed = service.close("e");
      await turn();
      const late = kernel.send(fuse.FUSE_GETATTR, new Uint8Array(16));
      node.go();
      await run(() => closed);
      expect((await kernel.reply(write)).error).toBe(0);
      expect(node.calls.at(-1)!.op).toBe(OP_FLUSH);
      expect(kernel.replies.has(late)).toBe(false);
      expect(events).toEqual([]);
      expect(reactor.engine.inFlight).toBe(0);
    });

    test("shutdown() is refused while a request is under way, if it is to be safe", async () => {
      node.hold();
      const read = kernel.send(fuse.FUSE_READ, readArgs(0, 512));
      await turn();
      expect(() => service.shutdown("e", true)).toThrow("Export 'e' is busy");
      expect(service.shutdown("e", false)).toEqual({ clientCount: 1, details: "nothing" });
      node.go();
      expect((await kernel.reply(read)).error).toBe(0);
      expect(service.shutdown("e", true)).toEqual({ clientCount: 0, details: "nothing" });
      await run(() => service.close("e"));
    });

    test("shutdown() says that there may be mappings", async () => {
      const args = fields(file.FUSE_OPEN_IN_SIZE, { [file.FUSE_OPEN_IN_FLAGS]: O_RDWR });
      const { data } = await request(fuse.FUSE_OPEN, args);
      expect(service.shutdown("e", true).details).toBe("mappings");
      const handle = new DataView(data.buffer).getUint32(file.FUSE_OPEN_OUT_FH, true);
      await request(fuse.FUSE_RELEASE, fields(24, { 0: handle }));
      expect(service.shutdown("e", true).details).toBe("nothing");
      await run(() => service.close("e"));
    });

    test("close() says when it could not flush", async () => {
      node.fails = () => -EIO;
      await run(() => service.close("e"));
      expect(logged).toEqual(["Could not flush export 'e': Input/output error"]);
    });

    test("suspend() gives all that resume() needs", async () => {
      const args = fields(file.FUSE_SETATTR_IN_SIZE, {
        [file.FUSE_SETATTR_IN_VALID]: fuse.FATTR_MODE,
        [file.FUSE_SETATTR_IN_MODE]: 0o640,
      });
      await request(fuse.FUSE_SETATTR, args);
      const handover = await run(() => service.suspend("e"));
      const read = kernel.send(fuse.FUSE_READ, readArgs(0, 512));
      for (let i = 0; i < 5; i++) await turn();
      expect(node.calls.map(({ op }) => op)).toEqual([OP_FLUSH, OP_FLUSH]);
      await run(() => service.resume(params(), structuredClone(handover)));
      expect((await kernel.reply(read)).error).toBe(0);
      expect(await modeOf()).toBe(0o100640);
      await run(() => service.close("e"));
    });

    test("suspend() refuses while main has a length to give, and it serves on", async () => {
      let give = (_result: number): void => {};
      resizeTo = () =>
        new Promise((resolve) => {
          give = resolve;
        });
      const write = kernel.send(fuse.FUSE_WRITE, writeArgs(MiB, new Uint8Array(512)));
      await turn();
      const refusal = "Export 'e' stays: its length is about to change";
      expect(await run(() => messageOf(service.suspend("e")))).toBe(refusal);
      expect(await modeOf()).toBe(0o100600);
      node.resize(2 * MiB);
      give(0);
      reactor.asyncResumed();
      expect((await kernel.reply(write)).error).toBe(0);
      await run(() => service.close("e"));
    });

    test("suspend() refuses when it can't flush, and it serves on", async () => {
      node.fails = (op) => (op === OP_FLUSH ? -EIO : 0);
      const refusal = "Export 'e' stays: Input/output error";
      expect(await run(() => messageOf(service.suspend("e")))).toBe(refusal);
      expect(await modeOf()).toBe(0o100600);
      await run(() => service.close("e"));
    });

    test("tells main once that the session has ended", async () => {
      kernel.sendRaw(new Uint8Array(3));
      for (let i = 0; i < 5; i++) await turn();
      expect(events).toEqual([{ event: "fuse-ended", exportId: "e", error: -EIO }]);
      await run(() => service.close("e"));
      expect(events.length).toBe(1);
    });
  });
}
