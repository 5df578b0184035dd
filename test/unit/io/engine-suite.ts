/** What every I/O engine promises; each engine's test file calls addEngineTests(). */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  EFD_NONBLOCK,
  F_GETFD,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FD_CLOEXEC,
  O_CREAT,
  O_RDONLY,
  POLLIN,
  POLLOUT,
  RWF_DSYNC,
} from "../../../src/abi/linux.ts";
import {
  AF_UNIX,
  MSGHDR_IOV,
  MSGHDR_IOVLEN,
  SO_SNDBUF,
  SOCK_STREAM,
  SOL_SOCKET,
} from "../../../src/abi/linux-socket.ts";
import {
  EAGAIN,
  EBADF,
  ECANCELED,
  ECONNRESET,
  ENOTSOCK,
  EPIPE,
} from "../../../src/runtime/errno.ts";
import { addFaultTests } from "./engine-faults.ts";
import { type MakeEngine, Rig } from "./engine-rig.ts";

const MIB = 1024 * 1024;

export function addEngineTests(name: string, makeEngine: MakeEngine): void {
  describe(name, () => {
    let rig: Rig;
    beforeEach(() => {
      rig = new Rig(makeEngine);
    });
    afterEach(() => {
      rig.settle();
      const { inFlight } = rig.engine;
      rig.end();
      expect(inFlight).toBe(0);
    });
    const current = () => rig;
    describe("files", () => addFileTests(current));
    describe("sockets", () => addSocketTests(current));
    describe("streams", () => addStreamTests(current));
    describe("cancel", () => addCancelTests(current));
    describe("wait", () => addWaitTests(current));
    describe("call", () => addCallTests(current));
    describe("load", () => addLoadTests(current));
  });
  describe(name, () => addFaultTests(makeEngine));
}

function addFileTests(current: () => Rig): void {
  test("read() gives back what write() wrote, at offsets beyond 4 GiB", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file();
    const offset = 5 * 1024 * MIB + 4096;
    rig.fill(0, MIB);
    expect(rig.run((token) => engine.write(fd, memory.address, MIB, offset, 0, token))).toBe(MIB);
    const target = memory.address + 2 * MIB;
    expect(rig.run((token) => engine.read(fd, target, MIB, offset, token))).toBe(MIB);
    expect(rig.mismatch(2 * MIB, MIB)).toBe(-1);
  });

  test("read() is short at the end of the file, then 0", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file();
    expect(rig.run((token) => engine.write(fd, memory.address, 1000, 0, 0, token))).toBe(1000);
    expect(rig.run((token) => engine.read(fd, memory.address, 4096, 100, token))).toBe(900);
    expect(rig.run((token) => engine.read(fd, memory.address, 4096, 1000, token))).toBe(0);
  });

  test("write() takes unaligned ranges and RWF_DSYNC", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file();
    rig.fill(0, 10_000);
    const first = (token: number) => engine.write(fd, memory.address, 4321, 0, 0, token);
    const second = (token: number) =>
      engine.write(fd, memory.address + 4321, 5679, 4321, RWF_DSYNC, token);
    expect(rig.run(first)).toBe(4321);
    expect(rig.run(second)).toBe(5679);
    expect(rig.run((token) => engine.read(fd, memory.address + MIB, MIB, 0, token))).toBe(10_000);
    expect(rig.mismatch(MIB, 10_000)).toBe(-1);
  });

  test("readv() and writev() gather and scatter", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file();
    rig.fill(4096, 12_288);
    const vector = (at: number, parts: [at: number, bytes: number][]) => {
      for (const [index, [part, bytes]] of parts.entries()) {
        memory.setU64(at + index * 16, memory.address + part);
        memory.setU64(at + index * 16 + 8, bytes);
      }
      return memory.address + at;
    };
    for (const flags of [0, RWF_DSYNC]) {
      const source = vector(0, [
        [4096, 8192],
        [12_288, 4096],
      ]);
      const write = (token: number) => engine.writev(fd, source, 2, 4096, flags, token);
      expect(rig.run(write)).toBe(12_288);
    }
    const target = vector(64, [
      [MIB, 100],
      [MIB + 100, 12_188],
    ]);
    expect(rig.run((token) => engine.readv(fd, target, 2, 4096, token))).toBe(12_288);
    expect(rig.mismatch(MIB, 12_288)).toBe(-1);
  });

  test("fsync() and fallocate() do their work", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const fd = rig.file();
    rig.fill(0, 8192);
    expect(rig.run((token) => engine.fallocate(fd, 0, 0, 65_536, token))).toBe(0);
    expect(linux.lseek(fd, 0, 2)).toBe(65_536);
    expect(rig.run((token) => engine.write(fd, memory.address, 8192, 0, 0, token))).toBe(8192);
    expect(rig.run((token) => engine.fsync(fd, true, token))).toBe(0);
    expect(rig.run((token) => engine.fsync(fd, false, token))).toBe(0);
    const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    expect(rig.run((token) => engine.fallocate(fd, mode, 0, 4096, token))).toBe(0);
    const target = memory.address + MIB;
    expect(rig.run((token) => engine.read(fd, target, 8192, 0, token))).toBe(8192);
    expect(memory.u8.subarray(MIB, MIB + 4096).every((byte) => byte === 0)).toBe(true);
    expect(rig.mismatch(MIB + 4096, 4096, 4096)).toBe(-1);
  });

  test("errors come out as results", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file(O_RDONLY | O_CREAT);
    expect(rig.run((token) => engine.write(fd, memory.address, 4096, 0, 0, token))).toBe(-EBADF);
    expect(rig.run((token) => engine.read(99_999, memory.address, 4096, 0, token))).toBe(-EBADF);
    expect(rig.run((token) => engine.fsync(99_999, true, token))).toBe(-EBADF);
    expect(rig.run((token) => engine.recv(fd, memory.address, 4096, token))).toBe(-ENOTSOCK);
    expect(rig.run((token) => engine.accept(fd, token))).toBe(-ENOTSOCK);
  });
}

function addSocketTests(current: () => Rig): void {
  test("recv() completes when the peer sends, and with 0 when it is gone", () => {
    const rig = current();
    const { engine, memory } = rig;
    const [a, b] = rig.sockets();
    const receive = rig.start((token) => engine.recv(a, memory.address, 4096, token));
    rig.settle();
    expect(rig.results.size).toBe(0);
    rig.fill(MIB, 100);
    expect(rig.run((token) => engine.send(b, memory.address + MIB, 100, 0, token))).toBe(100);
    expect(rig.finish(receive)).toBe(100);
    expect(rig.mismatch(0, 100)).toBe(-1);
    const last = rig.start((token) => engine.recv(a, memory.address, 4096, token));
    rig.settle();
    rig.close(b);
    expect(rig.finish(last)).toBe(0);
  });

  test("a peer that vanished gives EPIPE and ECONNRESET, not a signal", () => {
    const rig = current();
    const { engine, memory } = rig;
    const [a, b] = rig.sockets();
    expect(rig.run((token) => engine.send(a, memory.address, 100, 0, token))).toBe(100);
    // With bytes unread, closing resets.
    rig.close(b);
    expect(rig.run((token) => engine.recv(a, memory.address, 100, token))).toBe(-ECONNRESET);
    expect(rig.run((token) => engine.send(a, memory.address, 100, 0, token))).toBe(-EPIPE);
    const message = 4096;
    memory.setU64(message + MSGHDR_IOV, memory.address + 8192);
    memory.setU64(message + MSGHDR_IOVLEN, 1);
    memory.setU64(8192, memory.address);
    memory.setU64(8200, 100);
    const sendmsg = (token: number) => engine.sendmsg(a, memory.address + message, 0, token);
    expect(rig.run(sendmsg)).toBe(-EPIPE);
  });

  test("a send() that waits ends when the peer vanishes", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const [a, b] = rig.sockets();
    linux.setsockopt(a, SOL_SOCKET, SO_SNDBUF, 4608);
    let sent = 0;
    let slot = rig.start((token) => engine.send(a, memory.address, MIB, 0, token));
    for (rig.settle(); rig.results.has(slot); rig.settle()) {
      sent += rig.results.get(slot)!;
      slot = rig.start((token) => engine.send(a, memory.address, MIB, 0, token));
    }
    expect(sent).toBeGreaterThan(0);
    rig.close(b);
    expect(rig.finish(slot)).toBe(-EPIPE);
  });

  test("sendmsg() and recvmsg() gather and scatter", () => {
    const rig = current();
    const { engine, memory } = rig;
    const [a, b] = rig.sockets();
    rig.fill(MIB, 5000);
    const message = (at: number, parts: [at: number, bytes: number][]) => {
      memory.setU64(at + MSGHDR_IOV, memory.address + at + 64);
      memory.setU64(at + MSGHDR_IOVLEN, parts.length);
      for (const [index, [part, bytes]] of parts.entries()) {
        memory.setU64(at + 64 + index * 16, memory.address + part);
        memory.setU64(at + 72 + index * 16, bytes);
      }
      return memory.address + at;
    };
    const target = message(0, [
      [2 * MIB, 10],
      [2 * MIB + 10, 8000],
    ]);
    const source = message(512, [
      [MIB, 4000],
      [MIB + 4000, 1000],
    ]);
    const receive = rig.start((token) => engine.recvmsg(a, target, 0, token));
    rig.settle();
    expect(rig.run((token) => engine.sendmsg(b, source, 0, token))).toBe(5000);
    expect(rig.finish(receive)).toBe(5000);
    expect(rig.mismatch(2 * MIB, 5000)).toBe(-1);
  });

  test("accept() takes one connection each, close-on-exec", () => {
    const rig = current();
    const { engine, linux } = rig;
    const listener = rig.own(linux.socket(AF_UNIX, SOCK_STREAM));
    const name = { type: "unix", path: rig.path("socket") } as const;
    expect(linux.bind(listener, name)).toBe(0);
    expect(linux.listen(listener, 10)).toBe(0);
    const first = rig.start((token) => engine.accept(listener, token));
    const second = rig.start((token) => engine.accept(listener, token));
    rig.settle();
    expect(rig.results.size).toBe(0);
    for (const slot of [first, second]) {
      const client = rig.own(linux.socket(AF_UNIX, SOCK_STREAM));
      expect(linux.connect(client, name)).toBe(0);
      const fd = rig.own(rig.finish(slot));
      expect(linux.fcntl(fd, F_GETFD)).toBe(FD_CLOEXEC);
    }
  });

  test("poll() says what is ready, once, beside other operations on the descriptor", () => {
    const rig = current();
    const { engine, memory } = rig;
    const [a, b] = rig.sockets();
    const readable = rig.start((token) => engine.poll(a, POLLIN, token));
    const receive = rig.start((token) => engine.recv(a, memory.address, 100, token));
    expect(rig.run((token) => engine.poll(a, POLLOUT, token))).toBe(POLLOUT);
    rig.settle();
    expect(rig.results.size).toBe(1);
    const both = rig.start((token) => engine.poll(b, POLLIN | POLLOUT, token));
    expect(rig.finish(both)).toBe(POLLOUT);
    // Two sends: whichever of the two is served first, the other has something left.
    rig.run((token) => engine.send(b, memory.address, 100, 0, token));
    rig.finish(receive);
    rig.run((token) => engine.send(b, memory.address, 100, 0, token));
    expect(rig.finish(readable)).toBe(POLLIN);
  });

  test("readStream() and writeStream() move the count of an eventfd", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const fd = rig.own(linux.eventfd(0, EFD_NONBLOCK));
    memory.setU64(0, 5);
    const read = rig.start((token) => engine.readStream(fd, memory.address + 8, 8, token));
    rig.settle();
    // An old kernel doesn't wait for a descriptor that says not to.
    const isWaiting = !rig.results.has(read);
    expect(rig.run((token) => engine.writeStream(fd, memory.address, 8, token))).toBe(8);
    if (isWaiting) {
      expect(rig.finish(read)).toBe(8);
      expect(memory.u32[2]).toBe(5);
    } else expect(linux.drainEventfd(fd)).toBe(5);
    // Ends when it is cancelled, too.
    const second = rig.start((token) => engine.readStream(fd, memory.address, 8, token));
    rig.settle();
    engine.cancel(rig.token(second));
    expect([-ECANCELED, -EAGAIN]).toContain(rig.finish(second));
  });

  test("a descriptor's number may come to mean another socket", () => {
    const rig = current();
    const { engine, memory } = rig;
    for (let round = 0; round < 20; round++) {
      const [a, b] = rig.sockets();
      const slot = rig.start((token) => engine.recv(a, memory.address, 100, token));
      rig.settle();
      if (round % 3 === 0) {
        engine.cancel(rig.token(slot));
        expect(rig.finish(slot)).toBe(-ECANCELED);
      } else {
        rig.run((token) => engine.send(b, memory.address, 7, 0, token));
        expect(rig.finish(slot)).toBe(7);
      }
      // A duplicate keeps the old socket open, and watched, under the number that is used again.
      rig.own(rig.linux.fcntl(a, 1030));
      rig.close(a);
      if (round % 2 === 0) rig.linux.send(b, memory.address, 9, 0);
      rig.close(b);
    }
  });
}

function addStreamTests(current: () => Rig): void {
  test("both directions of many sockets flow at once, with partial sends", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const streamBytes = 256 * 1024;
    const ends: number[] = [];
    for (let i = 0; i < 8; i++) ends.push(...rig.sockets());
    for (const fd of ends) linux.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, 4608);
    rig.fill(0, streamBytes);
    const sent = ends.map(() => 0);
    const received = ends.map(() => 0);
    const next = new Map<number, (count: number) => void>();
    const send = (end: number) => {
      const at = sent[end]!;
      if (at === streamBytes) return;
      const slot = rig.start((token) => {
        engine.send(ends[end]!, memory.address + at, streamBytes - at, 0, token);
      });
      next.set(slot, (count) => {
        expect(count).toBeGreaterThan(0);
        sent[end] = at + count;
        send(end);
      });
    };
    const receive = (end: number) => {
      const at = received[end]!;
      if (at === streamBytes) return;
      const target = MIB + end * streamBytes + at;
      const slot = rig.start((token) => {
        engine.recv(ends[end]!, memory.address + target, streamBytes - at, token);
      });
      next.set(slot, (count) => {
        expect(count).toBeGreaterThan(0);
        received[end] = at + count;
        receive(end);
      });
    };
    rig.onCompletion = (slot, result) => {
      next.get(slot)!(result);
      next.delete(slot);
    };
    for (let end = 0; end < ends.length; end++) {
      send(end);
      receive(end);
    }
    while (next.size > 0) expect(engine.wait(45_000_000_000)).toBeGreaterThan(0);
    for (let end = 0; end < ends.length; end++) {
      expect(rig.mismatch(MIB + end * streamBytes, streamBytes)).toBe(-1);
    }
  });
}

function addCancelTests(current: () => Rig): void {
  test("cancel() ends recv, send, accept and poll with ECANCELED, and nothing else", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const [a, b] = rig.sockets();
    const listener = rig.own(linux.socket(AF_UNIX, SOCK_STREAM));
    linux.bind(listener, { type: "unix", path: rig.path("socket") });
    linux.listen(listener, 1);
    const kept = rig.start((token) => engine.recv(b, memory.address + MIB, 100, token));
    const slots = [
      rig.start((token) => engine.recv(a, memory.address, 100, token)),
      rig.start((token) => engine.recv(a, memory.address, 100, token)),
      rig.start((token) => engine.poll(a, POLLIN, token)),
      rig.start((token) => engine.accept(listener, token)),
    ];
    rig.settle();
    for (const slot of slots) engine.cancel(rig.token(slot));
    for (const slot of slots) expect(rig.finish(slot)).toBe(-ECANCELED);
    expect(rig.results.has(kept)).toBe(false);
    expect(rig.run((token) => engine.send(a, memory.address, 100, 0, token))).toBe(100);
    expect(rig.finish(kept)).toBe(100);
  });

  test("cancel() right after the operation, and of one that is over, is harmless", () => {
    const rig = current();
    const { engine, memory } = rig;
    const [a, b] = rig.sockets();
    const slot = rig.start((token) => engine.recv(a, memory.address, 100, token));
    engine.cancel(rig.token(slot));
    expect(rig.finish(slot)).toBe(-ECANCELED);
    engine.cancel(rig.token(slot));
    rig.settle();
    expect(rig.run((token) => engine.send(b, memory.address, 5, 0, token))).toBe(5);
    expect(rig.run((token) => engine.recv(a, memory.address, 100, token))).toBe(5);
  });
}

function addWaitTests(current: () => Rig): void {
  test("wait(0) doesn't sleep, and a timeout is kept", () => {
    const rig = current();
    const { engine, memory, nowNs } = rig;
    const [a] = rig.sockets();
    const slot = rig.start((token) => engine.recv(a, memory.address, 100, token));
    for (const timeoutNs of [0, 300_000, 12_300_000]) {
      let early = 0;
      const startNs = nowNs();
      // An engine may return early; then the reactor comes again.
      while (nowNs() - startNs < timeoutNs && early++ < 5) {
        expect(engine.wait(timeoutNs - (nowNs() - startNs))).toBe(0);
      }
      expect(nowNs() - startNs).toBeGreaterThanOrEqual(timeoutNs);
      expect(nowNs() - startNs).toBeLessThan(timeoutNs + 30_000_000_000);
      expect(engine.wait(0)).toBe(0);
    }
    engine.cancel(rig.token(slot));
    rig.finish(slot);
  });

  test("wait(Infinity) ends by an eventfd", () => {
    const rig = current();
    const { engine, linux } = rig;
    const fd = rig.own(linux.eventfd());
    const slot = rig.start((token) => engine.poll(fd, POLLIN, token));
    rig.settle();
    linux.signalEventfd(fd);
    expect(engine.wait(Infinity)).toBe(1);
    expect(rig.results.get(slot)).toBe(POLLIN);
  });

  test("post() completes at the next wait()", () => {
    const rig = current();
    const slot = rig.start((token) => rig.engine.post(token, 42));
    expect(rig.results.size).toBe(0);
    expect(rig.engine.wait(Infinity)).toBe(1);
    expect(rig.results.get(slot)).toBe(42);
  });
}

function addCallTests(current: () => Rig): void {
  test("call() runs what blocks while other operations complete", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const pipe = linux.pipe();
    if (typeof pipe === "number") throw new Error("no pipe");
    rig.own(pipe.readFd);
    rig.own(pipe.writeFd);
    const blocked = rig.start((token) => {
      engine.call(linux.sys.read, [pipe.readFd, memory.address, 100], token);
    });
    const fd = rig.file();
    for (let i = 0; i < 10; i++) {
      expect(rig.run((token) => engine.write(fd, memory.address, 4096, 0, 0, token))).toBe(4096);
      expect(rig.run((token) => engine.call(linux.sys.fsync, [fd], token))).toBe(0);
    }
    expect(rig.results.has(blocked)).toBe(false);
    expect(linux.write(pipe.writeFd, memory.address, 7)).toBe(7);
    expect(rig.finish(blocked)).toBe(7);
    expect(rig.run((token) => engine.call(linux.sys.close, [99_999], token))).toBe(-EBADF);
  });

  test("call() takes more calls than its threads have room for", () => {
    const rig = current();
    const { engine, linux } = rig;
    const slots: number[] = [];
    for (let i = 0; i < 1000; i++) {
      slots.push(rig.start((token) => engine.call(linux.sys.getppid, [], token)));
    }
    const parent = linux.ffi.syscall(linux.sys.getppid);
    for (const slot of slots) expect(rig.finish(slot)).toBe(parent);
  });
}

function addLoadTests(current: () => Rig): void {
  test("more operations than any queue holds complete, each once", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file();
    const blocks = 64;
    rig.fill(0, blocks * 512);
    rig.run((token) => engine.write(fd, memory.address, blocks * 512, 0, 0, token));
    const count = 30_000;
    for (let i = 0; i < count; i++) {
      const block = i % blocks;
      const target = memory.address + MIB + i * 512;
      rig.start((token) => engine.read(fd, target, 512, block * 512, token));
    }
    while (rig.results.size < count + 1) expect(engine.wait(45_000_000_000)).toBeGreaterThan(0);
    for (let i = 0; i < count; i += 7) {
      expect(rig.mismatch(MIB + i * 512, 512, (i % blocks) * 512)).toBe(-1);
    }
  });

  test("operations that their own completions start don't nest", () => {
    const rig = current();
    const { engine, memory } = rig;
    const fd = rig.file();
    rig.run((token) => engine.write(fd, memory.address, 4096, 0, 0, token));
    let left = 20_000;
    let depth = 0;
    const again = () => rig.start((token) => engine.read(fd, memory.address, 512, 0, token));
    rig.onCompletion = (_, result) => {
      expect(++depth).toBe(1);
      expect(result).toBe(512);
      if (--left > 0) again();
      depth--;
    };
    again();
    while (left > 0) expect(engine.wait(45_000_000_000)).toBeGreaterThan(0);
  });

  test("thousands of sockets wait at once", () => {
    const rig = current();
    const { engine, memory, linux } = rig;
    const pairs = Array.from({ length: 400 }, () => rig.sockets());
    const slots: number[] = [];
    for (const [index, [a]] of pairs.entries()) {
      for (let i = 0; i < 10; i++) {
        const target = memory.address + index * 64;
        slots.push(rig.start((token) => engine.recv(a, target, 1, token)));
      }
    }
    rig.settle();
    expect(rig.results.size).toBe(0);
    for (const [, b] of pairs) expect(linux.send(b, memory.address, 10, 0)).toBe(10);
    for (const slot of slots) expect(rig.finish(slot)).toBe(1);
  });
}
