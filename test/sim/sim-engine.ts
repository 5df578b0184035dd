/**
 * Lets a reactor do I/O on simulated disks by descriptors that no file has, so that what a driver
 * maps to the host takes the fast way in crash tests, too.
 */
import { RWF_DSYNC } from "../../src/abi/linux.ts";
import type { IoEngine, Token } from "../../src/io/engine.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import type { SimDisk } from "./disk.ts";

/** Beyond all real ones. */
const FIRST_FD = 1_000_000_000;

type FileIo = Pick<IoEngine, "read" | "write" | "fsync">;

const installed = new WeakMap<Reactor, Map<number, SimDisk>>();

/** A descriptor of the disk, until releaseSimFd(). */
export function simFd(reactor: Reactor, disk: SimDisk): number {
  const disks = installed.get(reactor) ?? install(reactor);
  const fd = FIRST_FD + disks.size;
  disks.set(fd, disk);
  return fd;
}

export function releaseSimFds(reactor: Reactor): void {
  installed.get(reactor)?.clear();
}

function install(reactor: Reactor): Map<number, SimDisk> {
  const disks = new Map<number, SimDisk>();
  installed.set(reactor, disks);
  const { engine, memory } = reactor;
  const at = (address: number, bytes: number): Uint8Array =>
    memory.u8.subarray(address - memory.address, address - memory.address + bytes);
  const end = (token: Token, result: Promise<number>): void => {
    result.then((value) => engine.post(token, value));
  };
  const files: FileIo = {
    read(fd, address, bytes, offset, token) {
      const disk = disks.get(fd);
      if (disk === undefined) return engine.read(fd, address, bytes, offset, token);
      // A file ends where it ends.
      const part = Math.max(0, Math.min(bytes, disk.bytes - offset));
      const done = disk.read(offset, at(address, part));
      end(
        token,
        done.then((result) => (result < 0 ? result : part)),
      );
    },
    write(fd, address, bytes, offset, rwFlags, token) {
      const disk = disks.get(fd);
      if (disk === undefined) return engine.write(fd, address, bytes, offset, rwFlags, token);
      const write = async (): Promise<number> => {
        let result = await disk.write(offset, at(address, bytes));
        if (result === 0 && (rwFlags & RWF_DSYNC) !== 0) result = await disk.flush();
        return result < 0 ? result : bytes;
      };
      end(token, write());
    },
    fsync(fd, dataOnly, token) {
      const disk = disks.get(fd);
      if (disk === undefined) return engine.fsync(fd, dataOnly, token);
      end(token, disk.flush());
    },
  };
  const own = new Proxy(engine, {
    get(target, name) {
      if (Object.hasOwn(files, name)) return files[name as keyof FileIo];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  Object.assign(reactor, { engine: own });
  return disks;
}
