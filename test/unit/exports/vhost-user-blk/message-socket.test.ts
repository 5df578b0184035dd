import { describe, expect, test } from "bun:test";
import { AF_UNIX, SOCK_STREAM } from "../../../../src/abi/linux-socket.ts";
import * as vu from "../../../../src/abi/vhost-user.ts";
import { MessageSocket } from "../../../../src/exports/vhost-user-blk/message-socket.ts";
import { driver } from "../../../support/driver.ts";
import { ENGINES, makeReactor } from "../../../support/reactor.ts";
import { VhostUserClient } from "../../../support/vhost-user-client.ts";

for (const engine of ENGINES) {
  describe(`MessageSocket on ${engine}`, () => {
    test("is interrupted between two messages, unless that is taken back in time", async () => {
      const reactor = makeReactor(engine);
      const [ours, theirs] = reactor.linux.socketpair(AF_UNIX, SOCK_STREAM) as [number, number];
      const pause = async () => {
        reactor.turn(1_000_000);
        await driver.runMicrotasks();
      };
      const client = new VhostUserClient({ linux: reactor.linux, fd: theirs, pause });
      const socket = new MessageSocket(reactor, ours);
      let received: object | null = null;
      const receive = () => {
        received = null;
        socket.receive().then((message) => {
          received = message;
        });
      };
      receive();
      await pause();
      socket.interrupt();
      // The receive under way ends, and nobody has heard of it.
      reactor.turn(1_000_000);
      expect(socket.endInterrupt()).toBe(true);
      await driver.runMicrotasks();
      for (let i = 0; i < 5; i++) await pause();
      expect(received).toBe(null);
      client.send(vu.VHOST_USER_GET_FEATURES);
      await client.until(() => received !== null);
      expect(received).toMatchObject({ request: vu.VHOST_USER_GET_FEATURES });
      receive();
      await pause();
      socket.interrupt();
      await client.until(() => received !== null);
      expect(socket.endInterrupt()).toBe(false);
      expect<object | null>(received).toEqual({ fault: null, isInterrupted: true });
      client.close();
      socket.close();
      reactor.engine.close();
      reactor.memory.unmap();
    });
  });
}
