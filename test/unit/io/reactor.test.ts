import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { POLLIN } from "../../../src/abi/linux.ts";
import { AF_UNIX, SHUT_RDWR, SOCK_STREAM } from "../../../src/abi/linux-socket.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { NONE } from "../../../src/io/requests.ts";
import { EAGAIN, ECANCELED, EINTR, EIO } from "../../../src/runtime/errno.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";

for (const engine of ENGINES) {
  describe(`Reactor on ${engine}`, () => {
    let reactor: Reactor;

    beforeEach(() => {
      reactor = makeReactor(engine);
    });
    afterEach(() => {
      expect(reactor.engine.inFlight).toBe(0);
      reactor.engine.close();
      reactor.memory.unmap();
    });

    test("op() starts again after EINTR and EAGAIN, and holds thousands at a time", async () => {
      const tries = [-EINTR, -EAGAIN, -EIO];
      const result = await runOn(reactor, () =>
        reactor.op((io, token) => io.post(token, tries.shift()!)),
      );
      expect([result, tries.length]).toEqual([-EIO, 0]);
      // More than there are request slots: each may need one, and others besides.
      const many = Array.from({ length: 3 * reactor.requests.capacity }, (_, index) =>
        reactor.op((io, token) => io.post(token, index)),
      );
      const results = await runOn(reactor, () => Promise.all(many));
      expect(results).toEqual(many.map((_, index) => index));
    });

    test("cancellableOp() ends early, and never takes another one along", async () => {
      const [ours, theirs] = reactor.linux.socketpair(AF_UNIX, SOCK_STREAM) as [number, number];
      const start = () => reactor.cancellableOp((io, token) => io.poll(ours, POLLIN, token));
      const first = start();
      reactor.turn(0);
      first.cancel();
      first.cancel();
      expect(await runOn(reactor, () => first.result)).toBe(-ECANCELED);
      const ended = reactor.cancellableOp((io, token) => io.post(token, 7));
      reactor.turn(0);
      // It has the slot now, before anybody has seen the other's result.
      const next = start();
      ended.cancel();
      reactor.turn(0);
      expect(await ended.result).toBe(7);
      reactor.linux.shutdown(theirs, SHUT_RDWR);
      expect(await runOn(reactor, () => next.result)).toBeGreaterThan(0);
      reactor.linux.close(ours);
      reactor.linux.close(theirs);
    });

    test("run() resumes async work before it sleeps, and ends with stop()", async () => {
      const log: string[] = [];
      reactor.spawn(async () => {
        await reactor.sleep(1000);
        log.push("slept");
        for (let i = 0; i < 5; i++) await Promise.resolve();
        await reactor.op((io, token) => io.post(token, 0));
        log.push("done");
        reactor.defer(() => {
          log.push("deferred");
          reactor.defer(() => reactor.stop());
        });
      });
      await reactor.run();
      expect(log).toEqual(["slept", "done", "deferred"]);
    });

    test("run() does not sleep before what was started ahead of it", async () => {
      reactor.spawn(async () => {
        await Promise.resolve();
        reactor.stop();
      });
      const awake = reactor.timers.set(reactor.nowNs() + 2e9, () => reactor.stop());
      await reactor.run();
      expect(awake.index).toBeGreaterThanOrEqual(0);
      reactor.timers.clear(awake);
    });

    test("run() ends with the error of a task that fails", async () => {
      reactor.spawn(async () => {
        await reactor.sleep(1000);
        throw new Error("broken");
      });
      await expect(reactor.run()).rejects.toThrow("broken");
    });

    test("allocate() waits for a buffer", async () => {
      const taken: number[] = [];
      for (let at = 0; at !== NONE; ) {
        at = reactor.buffers.allocate(1024 * 1024);
        if (at !== NONE) taken.push(at);
      }
      const rest: number[] = [];
      for (let at = 0; at !== NONE; ) {
        at = reactor.buffers.allocate(4096);
        if (at !== NONE) rest.push(at);
      }
      const waits = reactor.allocate(4096);
      for (const at of [...taken, ...rest]) reactor.buffers.free(at);
      reactor.buffers.free(await runOn(reactor, () => waits));
      expect(reactor.buffers.bytesInUse).toBe(0);
    });
  });
}
