import { describe, expect, test } from "bun:test";
import { F_GET_SEALS, F_SEAL_SHRINK } from "../../../src/abi/memfd.ts";
import { EINVAL } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { InflightArea } from "../../../src/virtio/inflight.ts";
import { SharedFile } from "../../../src/virtio/shared-file.ts";
import { driver } from "../../support/driver.ts";
import { GuestRam } from "../../support/virtio-driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const SHAPE = { queueCount: 3, queueSize: 100, packed: false };
const BYTES = InflightArea.bytes(SHAPE);

function open(fd: number, place = { offset: 0, bytes: BYTES }): InflightArea {
  const area = InflightArea.open(linux, fd, SHAPE, place);
  if (typeof area === "number") throw new Error(`no area: ${area}`);
  return area;
}

describe("InflightArea", () => {
  test("keeps for the next back-end what the driver believes of the write cache", () => {
    const fd = InflightArea.create(linux, SHAPE);
    for (const isOn of [null, true, false, null]) {
      const area = open(fd);
      area.writeCache = isOn;
      for (let index = 0; index < 3; index++) {
        new Uint8Array(area.region(index, 100)!).fill(0xff);
      }
      area.unmap();
      const next = open(fd);
      expect(next.writeCache).toBe(isOn);
      next.unmap();
      expect(next.writeCache).toBe(null);
    }
    linux.close(fd);
  });

  test("writes nothing where another back-end, or an older one, has no trailer", () => {
    const ram = new GuestRam(linux, 64 * 1024);
    for (const bytes of [ram.bytes, BYTES, BYTES - 64]) {
      const area = open(ram.fd, { offset: 0, bytes });
      area.writeCache = false;
      expect<boolean | null>(area.writeCache).toBe(null);
      area.unmap();
    }
    expect(ram.u8.every((byte) => byte === 0)).toBe(true);
    ram.close();
  });

  test("maps and unmaps whole pages of a file of huge ones", () => {
    const hugeBytes = 2 ** 21;
    const lengths: number[] = [];
    class HugeLinux extends Linux {
      override fstat(fd: number) {
        const status = super.fstat(fd);
        return typeof status === "number" ? status : { ...status, blockSize: hugeBytes };
      }
      override munmap(address: number, bytes: number) {
        lengths.push(bytes);
        return super.munmap(address, bytes);
      }
    }
    const huge = new HugeLinux(driver.ffi, driver.arch);
    const fd = InflightArea.create(linux, SHAPE);
    const area = InflightArea.open(huge, fd, SHAPE, { offset: 0, bytes: BYTES });
    if (typeof area === "number") throw new Error(`no area: ${area}`);
    area.writeCache = true;
    area.unmap();
    linux.close(fd);
    expect(lengths).toEqual([hugeBytes]);
  });

  test("is refused where it is not whole", () => {
    const fd = InflightArea.create(linux, SHAPE);
    const refused = (offset: number, bytes: number) =>
      InflightArea.open(linux, fd, SHAPE, { offset, bytes });
    expect(refused(0, BYTES - 65)).toBe(-EINVAL);
    expect(refused(8, BYTES)).toBe(-EINVAL);
    expect(refused(4, BYTES - 64)).toBe(-EINVAL);
    expect(refused(-8, BYTES)).toBe(-EINVAL);
    expect(refused(0, 2 ** 60)).toBe(-EINVAL);
    expect(refused(0, Number.NaN)).toBe(-EINVAL);
    linux.close(fd);
  });
});

describe("SharedFile", () => {
  test("is sealed against shrinking where it can be, and maps no more than there is", () => {
    const ram = new GuestRam(linux, 64 * 1024);
    ram.u8[5000] = 7;
    const file = SharedFile.map(linux, ram.fd, 4096, 8192) as SharedFile;
    expect(linux.fcntl(ram.fd, F_GET_SEALS) & F_SEAL_SHRINK).toBe(F_SEAL_SHRINK);
    expect(new Uint8Array(file.view(900, 100))[4]).toBe(7);
    // Another thread of the process may go on with it.
    const moved = new SharedFile(linux, structuredClone(file.place));
    expect(new Uint8Array(moved.view(904, 1))[0]).toBe(7);
    moved.unmap();
    expect(SharedFile.map(linux, ram.fd, 60 * 1024, 8192)).toBe(-EINVAL);
    ram.close();
  });
});
