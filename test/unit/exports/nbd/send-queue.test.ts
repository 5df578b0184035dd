import { describe, expect, test } from "bun:test";
import { O_RDONLY } from "../../../../src/abi/linux.ts";
import { SendQueue } from "../../../../src/exports/nbd/send-queue.ts";
import { makeReactor } from "../../../support/reactor.ts";

describe("SendQueue", () => {
  test("sends what a number named when it was queued, whatever it names since", () => {
    const reactor = makeReactor("epoll");
    const { linux } = reactor;
    const inodeOf = (fd: number) => {
      const status = linux.fstat(fd);
      return typeof status === "number" ? status : status.ino;
    };
    const owner = { onPieceSent: () => {} };
    const queue = new SendQueue(reactor, -1, 0, owner);
    const [file, other] = ["/dev/zero", "/dev/null"].map((path) => linux.open(path, O_RDONLY));
    const [before, after] = [inodeOf(file!), inodeOf(other!)];
    const first = queue.openFile(file!, 1);
    queue.pushFile(first, 0, 4096, true);
    const second = queue.openFile(file!, 1);
    queue.pushFile(second, 0, 4096, true);
    expect(second).toBe(first);
    // A drained section, in which the node was closed and another one opened.
    linux.dup3(other!, file!);
    const third = queue.openFile(file!, 2);
    queue.pushFile(third, 0, 4096, true);
    expect([inodeOf(first), inodeOf(third)]).toEqual([before, after]);
    queue.clear();
    expect([inodeOf(first) < 0, inodeOf(third) < 0]).toEqual([true, true]);
    linux.close(file!);
    linux.close(other!);
    reactor.engine.close();
    reactor.memory.unmap();
  });
});
