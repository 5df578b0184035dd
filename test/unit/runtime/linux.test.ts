import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as abi from "../../../src/abi/linux.ts";
import {
  AF_INET,
  AF_UNIX,
  SO_ACCEPTCONN,
  SO_SNDBUF,
  SO_TYPE,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
} from "../../../src/abi/linux-socket.ts";
import {
  EAGAIN,
  EBADF,
  EEXIST,
  EINVAL,
  ENAMETOOLONG,
  ENOENT,
  ENOTTY,
  EPIPE,
} from "../../../src/runtime/errno.ts";
import { type FileStatus, Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const ANONYMOUS = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS;
const address = linux.mmap(0, 4096, abi.PROT_READ | abi.PROT_WRITE, ANONYMOUS, -1, 0);
const memory = new Uint8Array(driver.ffi.view(address, 4096));

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "linux-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

function makeFile(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

function opened(path: string, flags: number, mode = 0): number {
  const fd = linux.open(path, flags, mode);
  expect(fd).toBeGreaterThanOrEqual(0);
  return fd;
}

function put(text: string): number {
  const bytes = new TextEncoder().encode(text);
  memory.set(bytes);
  return bytes.length;
}

function text(bytes: number): string {
  return new TextDecoder().decode(memory.subarray(0, bytes));
}

describe("Linux files", () => {
  test("open() creates with a mode, close-on-exec, and open() again reads", () => {
    const path = join(folder, "made süß");
    const fd = opened(path, abi.O_RDWR | abi.O_CREAT | abi.O_EXCL, 0o640);
    expect(linux.fcntl(fd, abi.F_GETFD)).toBe(abi.FD_CLOEXEC);
    expect(linux.pwrite(fd, address, put("content"), 0)).toBe(7);
    expect(linux.close(fd)).toBe(0);
    expect(statSync(path).mode & 0o777).toBe(0o640);
    expect(readFileSync(path, "utf8")).toBe("content");
    expect(linux.open(path, abi.O_RDWR | abi.O_CREAT | abi.O_EXCL, 0o600)).toBe(-EEXIST);
  });

  test("open() returns the errno of what failed", () => {
    expect(linux.open(join(folder, "absent"), abi.O_RDONLY)).toBe(-ENOENT);
    expect(linux.open(`/${"x".repeat(5000)}`, abi.O_RDONLY)).toBe(-ENAMETOOLONG);
    expect(linux.open("/dev/null\0x", abi.O_RDONLY)).toBe(-EINVAL);
    expect(linux.close(-1)).toBe(-EBADF);
  });

  test("pread() and pwrite() take offsets above 4 GiB", () => {
    const fd = opened(join(folder, "sparse"), abi.O_RDWR | abi.O_CREAT, 0o600);
    const offset = 2 ** 40 + 123;
    expect(linux.pwrite(fd, address, put("far"), offset)).toBe(3);
    memory.fill(0);
    expect(linux.pread(fd, address, 100, offset)).toBe(3);
    expect(text(3)).toBe("far");
    expect((linux.fstat(fd) as FileStatus).bytes).toBe(offset + 3);
    expect(linux.lseek(fd, 0, abi.SEEK_END)).toBe(offset + 3);
    expect(linux.lseek(fd, 2 ** 30, abi.SEEK_DATA)).toBeLessThanOrEqual(offset);
    expect(linux.ftruncate(fd, 2 ** 33)).toBe(0);
    expect((linux.fstat(fd) as FileStatus).bytes).toBe(2 ** 33);
    linux.close(fd);
  });

  test("pwritev2() and preadv2() take an iovec and flags", () => {
    const fd = opened(join(folder, "vector"), abi.O_RDWR | abi.O_CREAT, 0o600);
    put("abcdef");
    const view = new DataView(memory.buffer);
    view.setBigUint64(1024 + abi.IOVEC_BASE, BigInt(address), true);
    view.setBigUint64(1024 + abi.IOVEC_LEN, 6n, true);
    expect(linux.pwritev2(fd, address + 1024, 1, 10, abi.RWF_DSYNC)).toBe(6);
    memory.fill(0, 0, 6);
    expect(linux.preadv2(fd, address + 1024, 1, 12, 0)).toBe(4);
    expect(text(4)).toBe("cdef");
    expect(linux.preadv2(fd, address + 1024, 1, 12, 0x4000_0000)).toBeLessThan(0);
    linux.close(fd);
  });

  test("stat() and fstat() say the same as the runtime", () => {
    const path = makeFile("status", "x".repeat(5000));
    const expected = statSync(path);
    const fd = opened(path, abi.O_RDONLY);
    const status = linux.fstat(fd) as FileStatus;
    expect(status.bytes).toBe(5000);
    expect(status.mode).toBe(expected.mode);
    expect(status.mode & abi.S_IFMT).toBe(abi.S_IFREG);
    expect(status.ino).toBe(expected.ino);
    expect(status.blocks).toBe(expected.blocks);
    expect(linux.stat(path)).toEqual(status);
    expect(linux.stat(join(folder, "absent"))).toBe(-ENOENT);
    expect(linux.fstat(-1)).toBe(-EBADF);
    const device = linux.stat("/dev/null") as FileStatus;
    expect(device.mode & abi.S_IFMT).toBe(abi.S_IFCHR);
    expect(device.rdev).toBe(1 * 2 ** 20 + 3);
    linux.close(fd);
  });

  test("fallocate() punches a hole", () => {
    const path = makeFile("hole", "x".repeat(16384));
    const fd = opened(path, abi.O_RDWR);
    const mode = abi.FALLOC_FL_PUNCH_HOLE | abi.FALLOC_FL_KEEP_SIZE;
    expect(linux.fallocate(fd, mode, 4096, 8192)).toBe(0);
    expect(linux.pread(fd, address, 4096, 4096)).toBe(4096);
    expect(memory.every((byte) => byte === 0)).toBe(true);
    expect(linux.fsync(fd)).toBe(0);
    expect(linux.fdatasync(fd)).toBe(0);
    expect(linux.fsync(-1)).toBe(-EBADF);
    linux.close(fd);
  });

  test("setLock() excludes another open of the file, and testLock() tells", () => {
    const path = makeFile("lock", "");
    const [first, second] = [opened(path, abi.O_RDWR), opened(path, abi.O_RDWR)];
    expect(linux.setLock(first, abi.F_RDLCK, 201, 1)).toBe(0);
    expect(linux.testLock(second, abi.F_WRLCK, 201, 1)).toBe(abi.F_RDLCK);
    expect(linux.testLock(second, abi.F_WRLCK, 202, 1)).toBe(abi.F_UNLCK);
    expect(linux.testLock(first, abi.F_WRLCK, 201, 1)).toBe(abi.F_UNLCK);
    expect(linux.setLock(second, abi.F_WRLCK, 200, 2)).toBe(-EAGAIN);
    expect(linux.setLock(first, abi.F_UNLCK, 201, 1)).toBe(0);
    expect(linux.setLock(second, abi.F_WRLCK, 200, 2)).toBe(0);
    linux.close(first);
    linux.close(second);
  });

  test("mkdir(), rename() and unlink() take paths", () => {
    makeFile("before", "moved");
    expect(linux.mkdir(join(folder, "sub"), 0o700)).toBe(0);
    expect(linux.mkdir(join(folder, "sub"), 0o700)).toBe(-EEXIST);
    expect(linux.rename(join(folder, "before"), join(folder, "sub/after"))).toBe(0);
    expect(readFileSync(join(folder, "sub/after"), "utf8")).toBe("moved");
    expect(linux.unlink(join(folder, "sub/after"))).toBe(0);
    expect(linux.unlink(join(folder, "sub/after"))).toBe(-ENOENT);
  });

  test("ioctlGet() returns -ENOTTY for what is no block device", () => {
    const fd = opened(makeFile("plain", ""), abi.O_RDWR);
    expect(linux.ioctlGet(fd, abi.BLKGETSIZE64, 8)).toBe(-ENOTTY);
    linux.close(fd);
  });

  test("fcntl() F_GETFL speaks our O_* on arm64, too", () => {
    const calls: number[][] = [];
    const ffi = {
      ...driver.ffi,
      syscall: (number: number, ...args: number[]) => {
        if (number === 222) return address;
        calls.push([number, ...args]);
        return number === 25 ? abi.ARM64_O_DIRECT | abi.O_RDWR : 3;
      },
    };
    const arm64 = new Linux(ffi, "arm64");
    arm64.openat(7, "", abi.O_DIRECT | abi.O_DIRECTORY | abi.O_NOFOLLOW | abi.O_WRONLY);
    const native = abi.ARM64_O_DIRECT | abi.ARM64_O_DIRECTORY | abi.ARM64_O_NOFOLLOW;
    expect(calls[0]).toEqual([56, 7, address, native | abi.O_WRONLY | abi.O_CLOEXEC, 0]);
    expect(arm64.fcntl(3, abi.F_GETFL)).toBe(abi.O_DIRECT | abi.O_RDWR);
    arm64.fcntl(3, abi.F_SETFL, abi.O_DIRECT);
    expect(calls.at(-1)).toEqual([25, 3, abi.F_SETFL, abi.ARM64_O_DIRECT]);
  });
});

describe("Linux descriptors", () => {
  test("eventfd counts what signalEventfd() adds until drainEventfd()", () => {
    const fd = linux.eventfd(0, abi.EFD_NONBLOCK);
    expect(linux.drainEventfd(fd)).toBe(-EAGAIN);
    expect(linux.signalEventfd(fd)).toBe(8);
    expect(linux.signalEventfd(fd)).toBe(8);
    expect(linux.poll(fd, abi.POLLIN, 0)).toBe(abi.POLLIN);
    expect(linux.drainEventfd(fd)).toBe(2);
    expect(linux.poll(fd, abi.POLLIN, 5)).toBe(0);
    linux.close(fd);
  });

  test("pipe(), splice() and sendfile() move bytes", () => {
    const fd = opened(makeFile("source", "0123456789"), abi.O_RDONLY);
    const pipe = linux.pipe() as { readFd: number; writeFd: number };
    expect(linux.splice(fd, 4, pipe.writeFd, -1, 3, 0)).toBe(3);
    expect(linux.sendfile(pipe.writeFd, fd, 8, 2)).toBe(2);
    expect(linux.read(pipe.readFd, address, 100)).toBe(5);
    expect(text(5)).toBe("45689");
    for (const end of [fd, pipe.readFd, pipe.writeFd]) linux.close(end);
  });

  test("epollWait() returns the event with its data", () => {
    const [epollFd, fd] = [linux.epollCreate(), linux.eventfd(1)];
    expect(linux.epollCtl(epollFd, abi.EPOLL_CTL_ADD, fd, abi.POLLIN, 0xdead_beef)).toBe(0);
    expect(linux.epollWait(epollFd, address, 4, -1)).toBe(1);
    const view = new DataView(memory.buffer);
    expect(view.getUint32(0, true)).toBe(abi.POLLIN);
    expect(view.getUint32(abi.EPOLL_EVENT[driver.arch].data, true)).toBe(0xdead_beef);
    expect(linux.epollCtl(epollFd, abi.EPOLL_CTL_DEL, fd, 0, 0)).toBe(0);
    expect(linux.epollWait(epollFd, address, 4, 0)).toBe(0);
    linux.close(epollFd);
    linux.close(fd);
  });
});

describe("Linux sockets", () => {
  test("bind(), listen(), connect() and accept() make a connection", () => {
    const server = linux.socket(AF_INET, SOCK_STREAM);
    const loopback = { type: "inet", family: 4, address: "127.0.0.1" } as const;
    expect(linux.bind(server, { ...loopback, port: 0 })).toBe(0);
    expect(linux.listen(server, 1)).toBe(0);
    expect(linux.getsockopt(server, SOL_SOCKET, SO_ACCEPTCONN)).toBe(1);
    const bound = linux.getsockname(server) as { port: number };
    expect(bound.port).toBeGreaterThan(0);
    const client = linux.socket(AF_INET, SOCK_STREAM);
    expect(linux.connect(client, { ...loopback, port: bound.port })).toBe(0);
    const accepted = linux.accept(server, SOCK_NONBLOCK);
    expect(linux.getpeername(client)).toEqual({ ...loopback, port: bound.port });
    expect(linux.recv(accepted, address, 10, 0)).toBe(-EAGAIN);
    expect(linux.send(client, address, put("hello"), 0)).toBe(5);
    expect(linux.recv(accepted, address, 10, 0)).toBe(5);
    expect(text(5)).toBe("hello");
    for (const fd of [server, client, accepted]) linux.close(fd);
  });

  test("socketpair() is connected, and send() to a closed end is -EPIPE without a signal", () => {
    const [left, right] = linux.socketpair(AF_UNIX, SOCK_STREAM) as readonly [number, number];
    expect(linux.getsockname(left)).toEqual({ type: "unix", path: "" });
    expect(linux.getsockopt(left, SOL_SOCKET, SO_TYPE)).toBe(SOCK_STREAM);
    expect(linux.setsockopt(left, SOL_SOCKET, SO_SNDBUF, 65536)).toBe(0);
    expect(linux.getsockopt(left, SOL_SOCKET, SO_SNDBUF)).toBe(131072);
    linux.close(right);
    expect(linux.send(left, address, 1, 0)).toBe(-EPIPE);
    linux.close(left);
  });

  test("bind() refuses a name that is none", () => {
    const fd = linux.socket(AF_UNIX, SOCK_STREAM);
    expect(linux.bind(fd, { type: "unix", path: "x".repeat(109) })).toBe(-EINVAL);
    expect(linux.connect(fd, { type: "unix", path: join(folder, "none") })).toBe(-ENOENT);
    linux.close(fd);
  });
});

describe("Linux process", () => {
  test("realTimeUs() is the time of day", () => {
    const beforeMs = Date.now();
    const nowMs = linux.realTimeUs() / 1000;
    // Clocks that are read in different ways differ a little.
    expect(nowMs).toBeGreaterThan(beforeMs - 100);
    expect(nowMs).toBeLessThan(Date.now() + 100);
  });

  test("umask() returns the one before", () => {
    const before = linux.umask(0o077);
    expect(linux.umask(before)).toBe(0o077);
  });

  test("getpid() is the runtime's", () => {
    expect(linux.getpid()).toBe(driver.process.pid);
  });
});
