/**
 * The guest's memory as it is mapped here: regions that come and go while requests are in flight.
 * Payload goes between it and host files by address; JavaScript looks at rings, headers and
 * status bytes only, through windows. Thread: iothread.
 * Spec: vhost-user.rst "Memory access", SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG
 *
 * The owner of the memory may shrink its file under us, and a look at what is gone would end the
 * process (SIGBUS). A region is only mapped when the file covers it, and is sealed against
 * shrinking where the file can be sealed. What remains is a file that can't be (not a memfd, or
 * made without MFD_ALLOW_SEALING) and whose owner truncates it while its guest runs.
 */
import { MADV_DONTDUMP, MAP_NORESERVE } from "../abi/linux.ts";
import { VHOST_USER_MAX_RAM_SLOTS } from "../abi/vhost-user.ts";
import type { Memory } from "../io/memory.ts";
import type { PayloadMemory } from "../io/payload-memory.ts";
import { EEXIST, EINVAL, ENOENT, ENOSPC } from "../runtime/errno.ts";
import type { FileStatus, Linux } from "../runtime/linux.ts";
import { assert } from "../util/error.ts";
import type { DirtyLog } from "./dirty-log.ts";
import { mapShared } from "./shared-file.ts";

/** Positions in a window are small integers, which is what makes them quick. */
const WINDOW_BYTES = 2 ** 30;
/** A window ends so much later than the next begins: whatever begins in it, lies in it. */
export const WINDOW_OVERLAP_BYTES = 2 ** 20;
/** Removals whose requests are told apart from later ones. */
const EPOCHS = 64;

/** What a front-end says of one region. Safe integers. */
export interface RegionOptions {
  /** The caller's, who may close it afterwards. */
  readonly fd: number;
  /** Where the region begins in the file. */
  readonly fileOffset: number;
  readonly guestAddress: number;
  readonly userAddress: number;
  readonly bytes: number;
}

/** Views of one piece of a region. Positions ("at") are byte offsets in it, below 2^31. */
export class Window {
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  readonly view: DataView;

  constructor(buffer: ArrayBuffer) {
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer, 0, buffer.byteLength >>> 2);
    this.view = new DataView(buffer);
  }
}

/** One region as it is mapped, for any thread of the process. */
export interface MappedRegion {
  readonly options: RegionOptions;
  readonly mapped: Pick<Region, "file" | "isSealed" | "mapAddress" | "mapBytes" | "hostAddress">;
}

export class Region {
  readonly guestAddress: number;
  readonly guestEnd: number;
  readonly userAddress: number;
  readonly bytes: number;
  readonly hostAddress: number;
  /** Its file can't be shrunk. */
  readonly isSealed: boolean;
  readonly fileOffset: number;
  readonly file: FileStatus;
  readonly mapAddress: number;
  readonly mapBytes: number;
  readonly windows: (Window | undefined)[];
  /** Once it is removed: the last epoch whose requests may use it. */
  epoch = 0;

  constructor(options: RegionOptions, mapped: MappedRegion["mapped"]) {
    this.guestAddress = options.guestAddress;
    this.guestEnd = options.guestAddress + options.bytes;
    this.userAddress = options.userAddress;
    this.bytes = options.bytes;
    this.fileOffset = options.fileOffset;
    this.file = mapped.file;
    this.isSealed = mapped.isSealed;
    this.mapAddress = mapped.mapAddress;
    this.mapBytes = mapped.mapBytes;
    this.hostAddress = mapped.hostAddress;
    this.windows = new Array(Math.ceil(options.bytes / WINDOW_BYTES)).fill(undefined);
  }
}

export class GuestMemory implements PayloadMemory {
  readonly linux: Linux;
  /** What find() found: the window, and the position in it. */
  window: Window = new Window(new ArrayBuffer(0));
  at = 0;
  /** Set while pages written to are logged. */
  log: DirtyLog | null = null;
  /** Other regions are in use from now on; those gone are still mapped, until this returns. */
  onChange: () => void = () => {};
  /** By guest address. */
  #regions: Region[] = [];
  #last: Region | null = null;
  /** Removed, and perhaps still in use by requests in flight. */
  #retired: Region[] = [];
  #epoch = 0;
  /** By epoch modulo EPOCHS. */
  #inFlight = new Int32Array(EPOCHS);
  /** Epochs from this one on may have requests in flight. */
  #oldestEpoch = 0;

  constructor(linux: Linux) {
    this.linux = linux;
  }

  get regionCount(): number {
    return this.#regions.length;
  }

  /** Mapped still: those in use, and those that requests in flight keep. */
  get mappedCount(): number {
    return this.#regions.length + this.#retired.length;
  }

  /** Every region's file is sealed against shrinking. */
  get isSealed(): boolean {
    return this.#regions.every((region) => region.isSealed);
  }

  /** Maps one more region. Returns 0 or -errno. */
  add(options: RegionOptions): number {
    if (this.#regions.length >= VHOST_USER_MAX_RAM_SLOTS) return -ENOSPC;
    const region = this.#map(options);
    if (typeof region === "number") return region;
    if (overlaps(this.#regions, region)) {
      this.#unmap(region);
      return -EEXIST;
    }
    this.#use([...this.#regions, region]);
    return 0;
  }

  /** Removes the region; it is unmapped when no request in flight uses it. Returns 0 or -errno. */
  remove(guestAddress: number, userAddress: number, bytes: number): number {
    const region = this.#regions.find(
      (one) =>
        one.guestAddress === guestAddress && one.userAddress === userAddress && one.bytes === bytes,
    );
    if (region === undefined) return -ENOENT;
    this.#use(this.#regions.filter((one) => one !== region));
    return 0;
  }

  /** Takes on a new table; regions in both stay as they are. Returns 0, or -errno: no change. */
  replace(table: readonly RegionOptions[]): number {
    if (table.length > VHOST_USER_MAX_RAM_SLOTS) return -ENOSPC;
    const regions: Region[] = [];
    let result = 0;
    for (const options of table) {
      const region = this.#sameAs(options) ?? this.#map(options);
      if (typeof region === "number") result = region;
      else if (overlaps(regions, region)) {
        if (!this.#regions.includes(region)) this.#unmap(region);
        result = -EEXIST;
      } else regions.push(region);
      if (result < 0) break;
    }
    if (result === 0) this.#use(regions);
    else for (const one of regions) if (!this.#regions.includes(one)) this.#unmap(one);
    return result;
  }

  /** A request begins to use what is mapped now. Returns its epoch, for leave(). */
  enter(): number {
    const epoch = this.#epoch % EPOCHS;
    this.#inFlight[epoch]!++;
    return epoch;
  }

  leave(epoch: number): void {
    if (--this.#inFlight[epoch]! === 0 && this.#retired.length > 0) this.#sweep();
  }

  /** The region of a guest address, or null. */
  regionAt(guestAddress: number): Region | null {
    const last = this.#last;
    if (last !== null && guestAddress >= last.guestAddress && guestAddress < last.guestEnd) {
      return last;
    }
    const regions = this.#regions;
    let low = 0;
    let high = regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (regions[middle]!.guestEnd <= guestAddress) low = middle + 1;
      else high = middle;
    }
    const region = regions[low];
    if (region === undefined || region.guestAddress > guestAddress) return null;
    this.#last = region;
    return region;
  }

  /** Sets `window` and `at`. False: not all of it lies in one region. At most 1 MiB. */
  find(guestAddress: number, bytes: number): boolean {
    const region = this.regionAt(guestAddress);
    if (region === null || bytes > region.guestEnd - guestAddress) return false;
    this.#look(region, guestAddress - region.guestAddress);
    return true;
  }

  /** Where [userAddress, userAddress + bytes) is mapped, if all in one region, or -1. */
  hostAddressOf(userAddress: number, bytes: number): number {
    for (const region of this.#regions) {
      const offset = userAddress - region.userAddress;
      if (offset >= 0 && offset + bytes <= region.bytes) return region.hostAddress + offset;
    }
    return -1;
  }

  /** The guest's address of mapped memory, for the log. -1: none any more. */
  guestAddressOf(hostAddress: number): number {
    const region = this.#regionOfHost(hostAddress);
    return region === null ? -1 : region.guestAddress + (hostAddress - region.hostAddress);
  }

  /** Copies guest memory that may cross regions. False: not all of it is there. */
  copyOut(guestAddress: number, bytes: number, target: Uint8Array): boolean {
    for (let done = 0; done < bytes; ) {
      const region = this.regionAt(guestAddress + done);
      if (region === null) return false;
      const offset = guestAddress + done - region.guestAddress;
      this.#look(region, offset);
      const part = Math.min(bytes - done, region.bytes - offset, WINDOW_OVERLAP_BYTES);
      target.set(this.window.u8.subarray(this.at, this.at + part), done);
      done += part;
    }
    return true;
  }

  zero(address: number, bytes: number): void {
    for (let done = 0; done < bytes; ) {
      const part = this.#lookAtHost(address + done, bytes - done);
      this.window.u8.fill(0, this.at, this.at + part);
      done += part;
    }
  }

  read(address: number, bytes: number, target: Memory, at: number): void {
    for (let done = 0; done < bytes; ) {
      const part = this.#lookAtHost(address + done, bytes - done);
      target.u8.set(this.window.u8.subarray(this.at, this.at + part), at + done);
      done += part;
    }
  }

  write(address: number, bytes: number, source: Memory, at: number): void {
    for (let done = 0; done < bytes; ) {
      const part = this.#lookAtHost(address + done, bytes - done);
      this.window.u8.set(source.u8.subarray(at + done, at + done + part), this.at);
      done += part;
    }
  }

  /** Gives all regions away, mapped as they are. Nothing is in flight. */
  detach(): MappedRegion[] {
    assert(this.#retired.length === 0, "no request keeps memory");
    const regions = this.#regions;
    this.#regions = [];
    this.#use([]);
    return regions.map((region) => {
      const { guestAddress, userAddress, bytes, fileOffset } = region;
      const { file, isSealed, mapAddress, mapBytes, hostAddress } = region;
      return {
        options: { fd: -1, guestAddress, userAddress, bytes, fileOffset },
        mapped: { file, isSealed, mapAddress, mapBytes, hostAddress },
      };
    });
  }

  /** Takes over what detach() gave on another thread; has none of its own. */
  attach(regions: readonly MappedRegion[]): void {
    this.#use(regions.map(({ options, mapped }) => new Region(options, mapped)));
  }

  /** Removes all. What requests in flight use is unmapped when they end. */
  clear(): void {
    this.#use([]);
  }

  /** Puts a part of a request's payload into view; returns its length, at most `bytes`. */
  #lookAtHost(address: number, bytes: number): number {
    const region = this.#regionOfHost(address);
    assert(region !== null, "a request keeps the memory that it uses");
    const offset = address - region.hostAddress;
    this.#look(region, offset);
    return Math.min(bytes, region.bytes - offset, WINDOW_OVERLAP_BYTES);
  }

  #regionOfHost(address: number): Region | null {
    const isIn = (region: Region) =>
      address >= region.hostAddress && address < region.hostAddress + region.bytes;
    return this.#regions.find(isIn) ?? this.#retired.find(isIn) ?? null;
  }

  #look(region: Region, offset: number): void {
    const index = Math.floor(offset / WINDOW_BYTES);
    this.window = region.windows[index] ?? this.#openWindow(region, index);
    this.at = offset - index * WINDOW_BYTES;
  }

  #openWindow(region: Region, index: number): Window {
    const start = index * WINDOW_BYTES;
    const bytes = Math.min(WINDOW_BYTES + WINDOW_OVERLAP_BYTES, region.bytes - start);
    // SAFETY: inside the mapping, which outlives every request that may look at it: #sweep().
    const window = new Window(this.linux.ffi.view(region.hostAddress + start, bytes));
    region.windows[index] = window;
    return window;
  }

  /** The region that we have of this very memory. */
  #sameAs(options: RegionOptions): Region | undefined {
    const file = this.linux.fstat(options.fd);
    if (typeof file === "number") return undefined;
    return this.#regions.find(
      (one) =>
        one.guestAddress === options.guestAddress &&
        one.userAddress === options.userAddress &&
        one.bytes === options.bytes &&
        one.fileOffset === options.fileOffset &&
        one.file.ino === file.ino &&
        one.file.dev === file.dev,
    );
  }

  #map(options: RegionOptions): Region | number {
    const { linux } = this;
    const { fd, fileOffset, bytes } = options;
    if (!isSane(options)) return -EINVAL;
    const mapping = mapShared(linux, { fd, offset: fileOffset, bytes }, MAP_NORESERVE);
    if (typeof mapping === "number") return mapping;
    const { file, isSealed, mapAddress, mapBytes, skipped } = mapping;
    linux.madvise(mapAddress, mapBytes, MADV_DONTDUMP);
    const hostAddress = mapAddress + skipped;
    return new Region(options, { file, isSealed, mapAddress, mapBytes, hostAddress });
  }

  #unmap(region: Region): void {
    region.windows.length = 0;
    const result = this.linux.munmap(region.mapAddress, region.mapBytes);
    assert(result === 0, "what is mapped can be unmapped");
  }

  #use(regions: Region[]): void {
    const gone = this.#regions.filter((one) => !regions.includes(one));
    this.#regions = regions.sort((a, b) => a.guestAddress - b.guestAddress);
    this.#last = null;
    this.window = new Window(new ArrayBuffer(0));
    this.onChange();
    if (gone.length === 0) return;
    for (const one of gone) {
      one.epoch = this.#epoch;
      this.#retired.push(one);
    }
    this.#sweep();
    // When they have run out, later requests keep the region, too: it is only unmapped later.
    if (this.#epoch - this.#oldestEpoch < EPOCHS - 1) this.#epoch++;
  }

  #sweep(): void {
    while (this.#oldestEpoch < this.#epoch && this.#inFlight[this.#oldestEpoch % EPOCHS] === 0) {
      this.#oldestEpoch++;
    }
    const isIdle = this.#inFlight[this.#oldestEpoch % EPOCHS] === 0;
    const keepsFrom = isIdle ? this.#oldestEpoch + 1 : this.#oldestEpoch;
    this.#retired = this.#retired.filter((region) => {
      if (region.epoch >= keepsFrom) return true;
      this.#unmap(region);
      return false;
    });
  }
}

function isSane({ fileOffset, guestAddress, userAddress, bytes }: RegionOptions): boolean {
  const numbers = [fileOffset, guestAddress, userAddress, bytes];
  if (!numbers.every((value) => Number.isSafeInteger(value) && value >= 0) || bytes === 0) {
    return false;
  }
  return [fileOffset, guestAddress, userAddress].every((start) =>
    Number.isSafeInteger(start + bytes),
  );
}

function overlaps(regions: readonly Region[], { guestAddress, guestEnd }: Region): boolean {
  return regions.some((one) => guestAddress < one.guestEnd && one.guestAddress < guestEnd);
}
