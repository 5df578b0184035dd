import { afterEach, describe, expect, test } from "bun:test";
import * as fuse from "../../../../src/abi/fuse.ts";
import * as file from "../../../../src/abi/fuse-file.ts";
import {
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../../../src/block/node.ts";
import {
  EACCES,
  EINVAL,
  EIO,
  ENOENT,
  ENOSPC,
  ENOSYS,
  ENOTSUP,
  ENXIO,
  EPROTO,
} from "../../../../src/runtime/errno.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import {
  type FuseReply,
  fallocateArgs,
  fields,
  lseekArgs,
  readArgs,
  writeArgs,
} from "../../../support/fuse-kernel.ts";
import { FuseRig, type FuseRigOptions } from "../../../support/fuse-rig.ts";
import { ENGINES } from "../../../support/reactor.ts";

const MiB = 1024 * 1024;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 16;
const O_DSYNC = 0o10000;
const O_TRUNC = 0o1000;
const PATTERN = Uint8Array.from({ length: 70_000 }, (_, i) => i % 251);

const u32 = ({ data }: FuseReply, at: number) => new DataView(data.buffer).getUint32(at, true);
const u64 = ({ data }: FuseReply, at: number) =>
  Number(new DataView(data.buffer).getBigUint64(at, true));
const sizeOf = (reply: FuseReply) => u64(reply, file.FUSE_ATTR_OUT_ATTR + file.FUSE_ATTR_SIZE_OF);

function initArgs(major: number, minor: number, flags: number, flags2: number): Uint8Array {
  return fields(fuse.FUSE_INIT_IN_SIZE, {
    [fuse.FUSE_INIT_IN_MAJOR]: major,
    [fuse.FUSE_INIT_IN_MINOR]: minor,
    [fuse.FUSE_INIT_IN_MAX_READAHEAD]: 131072,
    [fuse.FUSE_INIT_IN_FLAGS]: flags,
    [fuse.FUSE_INIT_IN_FLAGS2]: flags2,
  });
}

for (const engine of ENGINES) {
  describe(`FuseSession on ${engine}`, () => {
    let rig: FuseRig;
    const start = (options: FuseRigOptions = {}) => {
      rig = new FuseRig(engine, options);
    };

    afterEach(async () => {
      await rig.end();
      expect(rig.node.waitingCount).toBe(0);
    });

    test("answers FUSE_INIT with what both sides have", async () => {
      start({ isInitialised: false });
      expect((await rig.request(fuse.FUSE_GETATTR)).error).toBe(-EIO);
      const reply = await rig.request(fuse.FUSE_INIT, initArgs(7, 40, 0xffffffff, 0xffffffff));
      expect(reply.error).toBe(0);
      expect(reply.data.length).toBe(fuse.FUSE_INIT_OUT_SIZE);
      expect(u32(reply, fuse.FUSE_INIT_OUT_MAJOR)).toBe(7);
      expect(u32(reply, fuse.FUSE_INIT_OUT_MINOR)).toBe(fuse.FUSE_KERNEL_MINOR_VERSION);
      expect(u32(reply, fuse.FUSE_INIT_OUT_MAX_WRITE)).toBe(MiB);
      expect(u32(reply, fuse.FUSE_INIT_OUT_FLAGS)).toBe(
        fuse.FUSE_ASYNC_READ |
          fuse.FUSE_ATOMIC_O_TRUNC |
          fuse.FUSE_BIG_WRITES |
          fuse.FUSE_ASYNC_DIO |
          fuse.FUSE_MAX_PAGES |
          fuse.FUSE_INIT_EXT,
      );
      expect(u32(reply, fuse.FUSE_INIT_OUT_FLAGS2)).toBe(fuse.FUSE_DIRECT_IO_ALLOW_MMAP_2);
      expect((await rig.request(fuse.FUSE_GETATTR)).error).toBe(0);
      expect((await rig.request(fuse.FUSE_INIT, initArgs(7, 40, 0, 0))).error).toBe(-EPROTO);
    });

    test("answers FUSE_INIT of other versions as they expect it", async () => {
      start({ isInitialised: false });
      const init = (major: number, minor: number) =>
        rig.request(fuse.FUSE_INIT, initArgs(major, minor, 0, 0).slice(0, 16));
      expect((await init(6, 40)).error).toBe(-EPROTO);
      expect((await init(7, 11)).error).toBe(-EPROTO);
      expect((await rig.request(fuse.FUSE_INIT, new Uint8Array(8))).error).toBe(-EPROTO);
      const newer = await init(8, 0);
      expect([newer.error, u32(newer, fuse.FUSE_INIT_OUT_MAJOR)]).toEqual([0, 7]);
      const old = await init(7, 22);
      expect([old.error, old.data.length]).toEqual([0, fuse.FUSE_COMPAT_22_INIT_OUT_SIZE]);
    });

    test("asks the kernel for what other parts want, and tells them what they got", async () => {
      const agreed: number[] = [];
      start({
        isInitialised: false,
        extras: { flags2: 0b10_0000, maxStackDepth: 1 },
        onAgreed: ({ flags2 }) => agreed.push(flags2),
      });
      const args = initArgs(7, 45, fuse.FUSE_INIT_EXT, 0b111_0000);
      const reply = await rig.request(fuse.FUSE_INIT, args);
      expect(u32(reply, fuse.FUSE_INIT_OUT_FLAGS2)).toBe(0b11_0000);
      expect(u32(reply, fuse.FUSE_INIT_OUT_MAX_STACK_DEPTH)).toBe(1);
      expect(agreed).toEqual([0b11_0000]);
    });

    test("reads up to the end of the disk", async () => {
      start();
      rig.node.data.set(PATTERN, 4000);
      const reply = await rig.read(4000, PATTERN.length);
      expect([reply.error, reply.data]).toEqual([0, PATTERN]);
      expect((await rig.read(MiB - 100, 4096)).data.length).toBe(100);
      expect((await rig.read(MiB, 4096)).data.length).toBe(0);
      expect((await rig.read(2 ** 60, 4096)).data.length).toBe(0);
      expect((await rig.read(0, 0)).data.length).toBe(0);
      expect((await rig.read(0, MiB + 1)).error).toBe(-EINVAL);
      expect((await rig.request(fuse.FUSE_READ, new Uint8Array(16))).error).toBe(-EINVAL);
      expect(rig.isClean).toBe(true);
    });

    test("writes, small and large, up to the end of the disk", async () => {
      start();
      for (const length of [1, 4096, 33_000, 70_000]) {
        const data = PATTERN.subarray(0, length);
        const reply = await rig.write(5000 + length, data);
        expect([reply.error, u32(reply, 0)]).toEqual([0, length]);
        expect(rig.node.data.subarray(5000 + length, 5000 + 2 * length)).toEqual(data);
      }
      const short = await rig.write(MiB - 100, PATTERN.subarray(0, 300));
      expect([short.error, u32(short, 0)]).toEqual([0, 100]);
      expect(u32(await rig.write(MiB, PATTERN), 0)).toBe(0);
      expect(u32(await rig.write(0, new Uint8Array(0)), 0)).toBe(0);
      expect(rig.resizes).toEqual([]);
      const args = writeArgs(0, PATTERN);
      expect((await rig.request(fuse.FUSE_WRITE, args.subarray(0, 5000))).error).toBe(-EINVAL);
      expect(rig.isClean).toBe(true);
    });

    test("flushes what is written through O_DSYNC, on close and on fsync", async () => {
      start();
      await rig.write(0, PATTERN, O_DSYNC);
      expect(rig.node.calls.map(({ op }) => op)).toEqual([OP_WRITE, OP_FLUSH]);
      for (const opcode of [fuse.FUSE_FLUSH, fuse.FUSE_FSYNC]) {
        rig.node.calls.length = 0;
        expect((await rig.request(opcode, new Uint8Array(24))).error).toBe(0);
        expect(rig.node.calls.map(({ op }) => op)).toEqual([OP_FLUSH]);
      }
      rig.node.fails = (op) => (op === OP_FLUSH ? -ENOSPC : 0);
      expect((await rig.request(fuse.FUSE_FLUSH, new Uint8Array(24))).error).toBe(-ENOSPC);
    });

    test("reports what the node fails with", async () => {
      start();
      rig.node.fails = (op) => (op === OP_READ ? -ENXIO : -ENOSPC);
      expect((await rig.read(0, 4096)).error).toBe(-ENXIO);
      expect((await rig.write(0, PATTERN)).error).toBe(-ENOSPC);
      expect(rig.isClean).toBe(true);
    });

    test("refuses every change of a read-only export", async () => {
      start({ writable: false });
      expect((await rig.write(0, PATTERN)).error).toBe(-EACCES);
      expect((await rig.request(fuse.FUSE_FALLOCATE, fallocateArgs(0, 0, 1))).error).toBe(-EACCES);
      const size = fields(file.FUSE_SETATTR_IN_SIZE, { 0: fuse.FATTR_SIZE });
      expect((await rig.request(fuse.FUSE_SETATTR, size)).error).toBe(-EACCES);
      expect((await rig.request(fuse.FUSE_FLUSH, new Uint8Array(24))).error).toBe(0);
      expect(rig.node.calls).toEqual([]);
    });

    test("a growable export grows before a write beyond its end", async () => {
      start({ growable: true });
      const reply = await rig.write(MiB + 1000, PATTERN);
      expect([reply.error, u32(reply, 0)]).toEqual([0, PATTERN.length]);
      const end = MiB + 1000 + PATTERN.length;
      expect(rig.resizes).toEqual([[end, true]]);
      expect(rig.node.data.subarray(MiB + 1000)).toEqual(PATTERN);
      expect((await rig.write(2 ** 60, PATTERN)).error).toBeLessThan(0);
      expect(rig.node.bytes).toBe(end);
    });

    test("writes beyond the end that come together grow the disk together", async () => {
      start({ growable: true });
      const ends = [MiB + 5000, MiB + 500_000, MiB + 100_000];
      const sent = ends.map((at) => rig.send(fuse.FUSE_WRITE, writeArgs(at, PATTERN)));
      for (const unique of sent) expect((await rig.reply(unique)).error).toBe(0);
      expect(rig.resizes.length).toBeLessThan(3);
      expect(rig.node.bytes).toBe(MiB + 500_000 + PATTERN.length);
      for (const at of ends.slice(1)) {
        expect(rig.node.data.subarray(at, at + PATTERN.length)).toEqual(PATTERN);
      }
    });

    test("what is too long for the host is not too long for the others", async () => {
      const resize = async (bytes: number) => {
        if (bytes > 2 * MiB) return -ENOSPC;
        await rig.resize(bytes);
        return 0;
      };
      start({ growable: true, resize });
      const good = rig.send(fuse.FUSE_WRITE, writeArgs(MiB, PATTERN));
      const bad = rig.send(fuse.FUSE_WRITE, writeArgs(3 * MiB, PATTERN));
      const fine = rig.send(fuse.FUSE_WRITE, writeArgs(MiB + 100_000, PATTERN));
      expect((await rig.reply(good)).error).toBe(0);
      expect((await rig.reply(bad)).error).toBe(-ENOSPC);
      expect((await rig.reply(fine)).error).toBe(0);
    });

    test("a failure to grow is the write's", async () => {
      start({ growable: true, resize: async () => -ENOSPC });
      expect((await rig.write(MiB, PATTERN)).error).toBe(-ENOSPC);
      expect(rig.node.calls).toEqual([]);
    });

    test("O_TRUNC empties growable exports only", async () => {
      start();
      const open = () =>
        rig.request(fuse.FUSE_OPEN, fields(file.FUSE_OPEN_IN_SIZE, { 0: O_TRUNC }));
      const reply = await open();
      const flags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES;
      expect(u32(reply, file.FUSE_OPEN_OUT_OPEN_FLAGS)).toBe(flags);
      expect(rig.node.bytes).toBe(MiB);
      await rig.end();
      start({ growable: true });
      expect(u32(await open(), file.FUSE_OPEN_OUT_OPEN_FLAGS)).toBe(flags);
      expect(rig.resizes).toEqual([[0, false]]);
    });

    test("GETATTR, STATX and STATFS tell of the disk", async () => {
      start();
      rig.node.describe = () => ({ actualBytes: 8192 });
      const reply = await rig.request(fuse.FUSE_GETATTR, new Uint8Array(16));
      const attr = file.FUSE_ATTR_OUT_ATTR;
      expect(sizeOf(reply)).toBe(MiB);
      expect(u64(reply, attr + file.FUSE_ATTR_INO)).toBe(1);
      expect(u64(reply, attr + file.FUSE_ATTR_BLOCKS)).toBe(16);
      expect(u32(reply, attr + file.FUSE_ATTR_MODE)).toBe(0o100600);
      expect(u32(reply, attr + file.FUSE_ATTR_UID)).toBe(7);
      expect(u32(reply, attr + file.FUSE_ATTR_GID)).toBe(8);
      expect(Math.abs(u64(reply, attr + file.FUSE_ATTR_MTIME) - Date.now() / 1000)).toBeLessThan(5);
      const statx = await rig.request(fuse.FUSE_STATX, new Uint8Array(24));
      const stat = file.FUSE_STATX_OUT_STAT;
      expect(statx.data.length).toBe(file.FUSE_STATX_OUT_SIZE);
      expect(u64(statx, stat + file.FUSE_STATX_SIZE_OF)).toBe(MiB);
      expect(u32(statx, stat + file.FUSE_STATX_MODE)).toBe(0o100600);
      const statfs = await rig.request(fuse.FUSE_STATFS);
      expect(u32(statfs, file.FUSE_KSTATFS_BSIZE)).toBe(512);
    });

    test("SETATTR changes length, and the owner may be told apart from nobody", async () => {
      start();
      const set = (values: Readonly<Record<number, number | bigint>>) =>
        rig.request(fuse.FUSE_SETATTR, fields(file.FUSE_SETATTR_IN_SIZE, values));
      const size = { 0: fuse.FATTR_SIZE, [file.FUSE_SETATTR_IN_SIZE_OF]: 300_000n };
      expect(sizeOf(await set(size))).toBe(300_000);
      expect(rig.resizes).toEqual([[300_000, false]]);
      expect((await set({ ...size, [file.FUSE_SETATTR_IN_SIZE_OF]: 1n << 62n })).error).toBe(-27);
      expect((await set({ 0: 1 << 4 })).error).toBe(-ENOTSUP);
      expect((await set({ 0: fuse.FATTR_UID })).error).toBe(-ENOTSUP);
      const mode = await set({ 0: fuse.FATTR_MODE, [file.FUSE_SETATTR_IN_MODE]: 0o100400 });
      expect(u32(mode, file.FUSE_ATTR_OUT_ATTR + file.FUSE_ATTR_MODE)).toBe(0o100400);
      const open = await set({ 0: fuse.FATTR_MODE, [file.FUSE_SETATTR_IN_MODE]: 0o100640 });
      expect(open.error).toBe(-1);
      expect(rig.session.state.mode).toBe(0o400);
    });

    test("SETATTR gives the file away where others may see it", async () => {
      start({ allowOther: true, writable: false });
      const set = (values: Readonly<Record<number, number>>) =>
        rig.request(fuse.FUSE_SETATTR, fields(file.FUSE_SETATTR_IN_SIZE, values));
      const reply = await set({
        0: fuse.FATTR_UID | fuse.FATTR_MODE,
        [file.FUSE_SETATTR_IN_UID]: 55,
        [file.FUSE_SETATTR_IN_GID]: 66,
        [file.FUSE_SETATTR_IN_MODE]: 0o444,
      });
      expect(reply.error).toBe(0);
      expect((await set({ 0: fuse.FATTR_MODE, [file.FUSE_SETATTR_IN_MODE]: 0o644 })).error).toBe(
        -30,
      );
      const { mode, uid, gid } = rig.session.state;
      expect([mode, uid, gid]).toEqual([0o444, 55, 8]);
    });

    test("FALLOCATE zeroes, punches and grows", async () => {
      start();
      rig.node.data.fill(7);
      const fallocate = async (mode: number, offset: number, bytes: number) =>
        (await rig.request(fuse.FUSE_FALLOCATE, fallocateArgs(mode, offset, bytes))).error;
      expect(await fallocate(0, 0, 4096)).toBe(-ENOTSUP);
      expect(await fallocate(KEEP_SIZE, 0, 4096)).toBe(-ENOTSUP);
      expect(await fallocate(PUNCH_HOLE, 0, 4096)).toBe(-EINVAL);
      expect(await fallocate(PUNCH_HOLE | KEEP_SIZE, 4096, 4096)).toBe(0);
      expect(await fallocate(ZERO_RANGE | KEEP_SIZE, MiB - 4096, 8192)).toBe(0);
      expect(await fallocate(ZERO_RANGE, MiB - 4096, 8192)).toBe(0);
      expect(await fallocate(0, MiB + 8192, 4096)).toBe(0);
      const punch = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
      expect(rig.node.calls.filter(({ op }) => op !== OP_FLUSH)).toEqual([
        { op: OP_WRITE_ZEROES, offset: 4096, bytes: 4096, flags: punch },
        { op: OP_WRITE_ZEROES, offset: MiB - 4096, bytes: 4096, flags: 0 },
        { op: OP_WRITE_ZEROES, offset: MiB - 4096, bytes: 8192, flags: 0 },
        { op: OP_WRITE_ZEROES, offset: MiB + 8192, bytes: 4096, flags: 0 },
      ]);
      expect(rig.resizes).toEqual([
        [MiB + 4096, true],
        [MiB + 8192 + 4096, true],
      ]);
      rig.node.fails = () => -ENOTSUP;
      expect(await fallocate(PUNCH_HOLE | KEEP_SIZE, 4096, 4096)).toBe(-ENOTSUP);
    });

    test("LSEEK finds data and holes", async () => {
      start();
      // 256 KiB of data, 256 KiB of hole, and so on.
      rig.node.status = (offset, bytes, out) => {
        const run = 256 * 1024;
        out.flags = Math.floor(offset / run) % 2 === 0 ? STATUS_DATA : STATUS_ZERO;
        out.bytes = Math.min(bytes, run - (offset % run));
        return 0;
      };
      const seek = async (offset: number, whence: number) => {
        const reply = await rig.request(fuse.FUSE_LSEEK, lseekArgs(offset, whence));
        return reply.error < 0 ? reply.error : u64(reply, 0);
      };
      expect(await seek(5, SEEK_DATA)).toBe(5);
      expect(await seek(5, SEEK_HOLE)).toBe(256 * 1024);
      expect(await seek(300_000, SEEK_DATA)).toBe(512 * 1024);
      expect(await seek(MiB - 5, SEEK_DATA)).toBe(-ENXIO);
      expect(await seek(MiB, SEEK_HOLE)).toBe(MiB);
      expect(await seek(MiB + 1, SEEK_HOLE)).toBe(-ENXIO);
      expect(await seek(0, 0)).toBe(-EINVAL);
      rig.node.status = () => -EIO;
      expect(await seek(0, SEEK_DATA)).toBe(-EIO);
    });

    test("there is nothing below the file, and what it can't do it says", async () => {
      start();
      const name = new TextEncoder().encode("x\0");
      expect((await rig.request(fuse.FUSE_LOOKUP, name)).error).toBe(-ENOENT);
      for (const opcode of [fuse.FUSE_GETXATTR, fuse.FUSE_IOCTL, fuse.FUSE_POLL, 4711]) {
        expect((await rig.request(opcode, new Uint8Array(64))).error).toBe(-ENOSYS);
      }
      expect((await rig.request(fuse.FUSE_RELEASE, new Uint8Array(24))).error).toBe(0);
      expect((await rig.request(fuse.FUSE_LSEEK, new Uint8Array(8))).error).toBe(-EINVAL);
      rig.send(fuse.FUSE_FORGET, new Uint8Array(8));
      rig.send(fuse.FUSE_BATCH_FORGET, new Uint8Array(8));
      await rig.turns(5);
      expect(rig.replies.size).toBe(0);
      expect(rig.ends).toEqual([]);
    });

    test("knows no other file", async () => {
      start();
      for (const nodeId of [0n, 2n, 1n << 32n, (1n << 32n) + 1n]) {
        rig.nodeId = nodeId;
        expect((await rig.read(0, 512)).error).toBe(-ENOENT);
        expect((await rig.write(0, PATTERN)).error).toBe(-ENOENT);
        expect((await rig.request(fuse.FUSE_GETATTR, new Uint8Array(16))).error).toBe(-ENOENT);
      }
      expect((await rig.request(fuse.FUSE_INTERRUPT, new Uint8Array(8))).error).toBe(-ENOSYS);
      expect((await rig.request(fuse.FUSE_DESTROY)).error).toBe(0);
      expect(rig.node.calls).toEqual([]);
    });

    test("pause() lets requests end and starts none; start() goes on", async () => {
      start();
      rig.node.hold();
      const first = rig.send(fuse.FUSE_READ, readArgs(0, 512));
      await rig.turns(5);
      let paused: boolean | null = null;
      rig.session.pause().then((isIdle) => {
        paused = isIdle;
      });
      await rig.turns(5);
      const second = rig.send(fuse.FUSE_GETATTR);
      await rig.turns(5);
      expect(paused).toBeNull();
      rig.node.go();
      expect((await rig.reply(first)).error).toBe(0);
      await rig.turns(5);
      expect(paused as boolean | null).toBe(true);
      expect(rig.replies.size).toBe(0);
      rig.session.start();
      expect((await rig.reply(second)).error).toBe(0);
    });

    test("pause() does not wait for a length that main has to give", async () => {
      let give = (_result: number): void => {};
      const resize = () =>
        new Promise<number>((resolve) => {
          give = resolve;
        });
      start({ growable: true, resize });
      const write = rig.send(fuse.FUSE_WRITE, writeArgs(MiB, PATTERN));
      await rig.turns(5);
      expect(rig.session.isResizing).toBe(true);
      let paused: boolean | null = null;
      rig.session.pause().then((isIdle) => {
        paused = isIdle;
      });
      await rig.turns(5);
      expect(paused as boolean | null).toBe(false);
      rig.session.start();
      give(-ENOSPC);
      rig.reactor.asyncResumed();
      expect((await rig.reply(write)).error).toBe(-ENOSPC);
    });

    test("requests wait while the node is drained", async () => {
      start();
      await rig.backend.drain();
      const read = rig.send(fuse.FUSE_READ, readArgs(0, 512));
      await rig.turns(5);
      expect(rig.node.calls).toEqual([]);
      const seek = rig.send(fuse.FUSE_LSEEK, lseekArgs(0, SEEK_DATA));
      await rig.turns(5);
      expect(rig.replies.size).toBe(0);
      rig.backend.resume();
      expect((await rig.reply(read)).error).toBe(0);
      expect((await rig.reply(seek)).error).toBe(0);
    });

    test("a drained section begins when the search for data has come to a halt", async () => {
      start();
      let answer = (_result: number): void => {};
      rig.node.status = (_offset, bytes, out) => {
        out.flags = STATUS_DATA;
        out.bytes = bytes;
        return new Promise((resolve) => {
          answer = resolve;
        });
      };
      const seek = rig.send(fuse.FUSE_LSEEK, lseekArgs(0, SEEK_DATA));
      await rig.turns(5);
      let isDrained = false;
      rig.backend.drain().then(() => {
        isDrained = true;
      });
      await rig.turns(5);
      expect(isDrained).toBe(false);
      answer(0);
      rig.reactor.asyncResumed();
      expect((await rig.reply(seek)).error).toBe(0);
      expect(isDrained as boolean).toBe(true);
      rig.backend.resume();
    });

    test("what waits while the disk gets shorter ends where it ends now", async () => {
      start();
      rig.node.data.set(PATTERN, 0);
      await rig.backend.drain();
      const read = rig.send(fuse.FUSE_READ, readArgs(0, 8192));
      const late = rig.send(fuse.FUSE_READ, readArgs(8192, 100));
      const write = rig.send(fuse.FUSE_WRITE, writeArgs(3000, PATTERN));
      await rig.turns(5);
      rig.node.resize(5000);
      rig.backend.resume();
      const short = await rig.reply(read);
      expect([short.error, short.data.subarray(0, 3000)]).toEqual([0, PATTERN.subarray(0, 3000)]);
      expect(short.data.length).toBe(5000);
      expect([(await rig.reply(late)).data.length, u32(await rig.reply(write), 0)]).toEqual([
        0, 2000,
      ]);
      expect(rig.node.data.subarray(3000)).toEqual(PATTERN.subarray(0, 2000));
      expect(rig.isClean).toBe(true);
    });

    test("is looked at while the thread is awake, for some time after a request", async () => {
      start();
      const { sources } = rig.reactor.polling;
      expect(sources.length).toBe(0);
      await rig.read(0, 512);
      expect(sources.length).toBe(1);
      for (let i = 0; i < 1100; i++) rig.reactor.turn(0);
      expect(sources.length).toBe(0);
      expect((await rig.read(0, 512)).error).toBe(0);
      await rig.session.pause();
      expect(sources.length).toBe(0);
      rig.session.start();
      expect((await rig.read(0, 512)).error).toBe(0);
    });

    test("tells the kernel of another length", async () => {
      start();
      rig.session.attributesChanged();
      await rig.turns(2);
      expect(rig.notifications.map(({ error }) => error)).toEqual([fuse.FUSE_NOTIFY_INVAL_INODE]);
      const [note] = rig.notifications;
      expect(u64(note!, file.FUSE_NOTIFY_INVAL_INODE_OUT_INO)).toBe(1);
      const view = new DataView(note!.data.buffer);
      expect(view.getBigInt64(file.FUSE_NOTIFY_INVAL_INODE_OUT_OFF, true)).toBe(-1n);
    });

    test("ends once when what comes is no request", async () => {
      start();
      rig.send(fuse.FUSE_GETATTR, new Uint8Array(16), 99);
      await rig.turns(5);
      expect(rig.ends).toEqual([-EIO]);
      rig.send(fuse.FUSE_GETATTR, new Uint8Array(16));
      await rig.turns(5);
      expect([rig.ends.length, rig.replies.size]).toEqual([1, 0]);
    });

    test("nodes with an alignment get whole blocks on aligned memory", async () => {
      start({
        node: (reactor) =>
          new FakeNode(reactor, MiB, { requestAlignment: 4096, memoryAlignment: 4096 }),
      });
      const addresses: number[] = [];
      const { write } = rig.node;
      rig.node.write = (offset, bytes, address, flags) => {
        addresses.push(address % 4096);
        return write.call(rig.node, offset, bytes, address, flags);
      };
      for (const length of [4096, 65536]) await rig.write(8192, PATTERN.subarray(0, length));
      expect(rig.node.calls.map(({ op, bytes }) => [op, bytes])).toEqual([
        [OP_WRITE, 4096],
        [OP_WRITE, 65536],
      ]);
      expect(addresses).toEqual([0, 0]);
    });

    test("REQ_FUA is what O_DSYNC becomes", async () => {
      start();
      const flags: number[] = [];
      const { submit } = rig.backend;
      rig.backend.submit = (slot) => {
        flags.push(rig.reactor.requests.flags[slot]!);
        submit.call(rig.backend, slot);
      };
      await rig.write(0, PATTERN);
      await rig.write(0, PATTERN, O_DSYNC);
      expect(flags).toEqual([0, REQ_FUA]);
    });
  });
}
