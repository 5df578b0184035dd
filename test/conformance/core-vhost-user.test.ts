/**
 * vhost-user-blk from outside, with a small front-end of the tests': data, life cycle, resize,
 * and a back-end that is killed in the middle of writes.
 */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM } from "../../src/abi/linux-socket.ts";
import {
  LOG_ENTRY_FLAGS,
  LOG_ENTRY_NR_SECTORS,
  LOG_FLUSH_FLAG,
  LOG_FUA_FLAG,
  LOG_SUPER_NR_ENTRIES,
  LOG_SUPER_SECTORSIZE,
} from "../../src/abi/log-writes.ts";
import * as vu from "../../src/abi/vhost-user.ts";
import * as blk from "../../src/abi/virtio-blk.ts";
import { VIRTIO_F_RING_PACKED } from "../../src/abi/virtio-ring.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { driver } from "../support/driver.ts";
import { MiB, pattern, patternImage, temporaryDirectory } from "../support/images.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";
import {
  ClientQueue,
  connectTo,
  longs,
  memoryTable,
  negotiate,
  VhostUserClient,
  words,
} from "../support/vhost-user-client.ts";
import { GuestRam, makeDriver } from "../support/virtio-driver.ts";

setDefaultTimeout(180_000);

const SIZE = 256;
const BYTES = 4 * MiB;
const PACKED_BASE = 0x8000_8000;
const NO_PACKED = ~(1n << BigInt(VIRTIO_F_RING_PACKED));
const OK = blk.VIRTIO_BLK_S_OK;
const linux = new Linux(driver.ffi, driver.arch);

interface Place extends AsyncDisposable {
  readonly directory: string;
  readonly image: string;
  readonly socket: string;
  /** Options of --export. */
  readonly exportOptions: string;
  readonly nodes: readonly string[];
}

async function makePlace(): Promise<Place> {
  const directory = await temporaryDirectory();
  const image = directory.file("disk.raw");
  const socket = directory.file("vhost.sock");
  await patternImage(image, BYTES);
  return {
    directory: directory.path,
    image,
    socket,
    nodes: ["--blockdev", `file,node-name=disk,filename=${image}`],
    exportOptions: `type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=${socket}`,
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

function start(place: Place, more = ",writable=on", before: readonly string[] = place.nodes) {
  const args = [...before, "--export", `${place.exportOptions}${more}`];
  return startDaemon(place.directory, args);
}

/** A guest: its memory, and one queue that outlives connections. */
class Guest {
  readonly ram = new GuestRam(linux, 8 * MiB);
  readonly packed: boolean;
  client: VhostUserClient;
  queue: ClientQueue;
  #inflight: { payload: Uint8Array; fds: readonly number[] } | null = null;
  #socket: string;

  constructor(socket: string, packed = false) {
    this.#socket = socket;
    this.packed = packed;
    this.client = this.#connect();
    const queue = makeDriver(this.ram, packed, { size: SIZE, eventIdx: true });
    this.queue = new ClientQueue(this.client, this.ram, queue, { index: 0, size: SIZE });
  }

  /** `base` of a split ring that ran before. */
  async start({ base = 0, tracked = false } = {}): Promise<bigint> {
    const { client } = this;
    const features = await negotiate(client, this.packed ? ~0n : NO_PACKED);
    await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([this.ram.region()]), [this.ram.fd]);
    if (tracked) {
      const shape = new Uint8Array(new Uint16Array([1, SIZE]).buffer);
      const request = Uint8Array.of(...longs(0, 0), ...shape);
      this.#inflight ??= await client.ask(vu.VHOST_USER_GET_INFLIGHT_FD, request);
      const { payload, fds } = this.#inflight;
      expect(await client.tell(vu.VHOST_USER_SET_INFLIGHT_FD, payload, fds)).toBe(0n);
    }
    await this.queue.start(this.packed ? PACKED_BASE : base, client);
    return features;
  }

  reconnect(): void {
    this.client.close();
    this.client = this.#connect();
  }

  async write(sector: number, bytes: Uint8Array): Promise<number> {
    const at = this.ram.allocate(bytes.length, 512);
    this.ram.u8.set(bytes, at);
    const data = [{ at, bytes: bytes.length, write: false }];
    return await this.queue.request(blk.VIRTIO_BLK_T_OUT, sector, data);
  }

  async read(sector: number, bytes: number): Promise<Uint8Array> {
    const at = this.ram.allocate(bytes, 512);
    const data = [{ at, bytes, write: true }];
    expect(await this.queue.request(blk.VIRTIO_BLK_T_IN, sector, data)).toBe(OK);
    return this.ram.u8.slice(at, at + bytes);
  }

  /** Of the configuration space, in sectors. */
  async capacity(): Promise<number> {
    const payload = Uint8Array.of(...words(0, 8, 0), ...longs(0));
    const reply = await this.client.ask(vu.VHOST_USER_GET_CONFIG, payload);
    return Number(new DataView(reply.payload.buffer).getBigUint64(12, true));
  }

  close(): void {
    this.client.close();
    this.queue.close();
    for (const fd of this.#inflight?.fds ?? []) linux.close(fd);
    this.ram.close();
  }

  #connect(): VhostUserClient {
    const fd = connectTo(linux, this.#socket);
    if (fd < 0) throw new Error(`cannot connect: ${fd}`);
    return new VhostUserClient({ linux, fd, pause: () => sleep(1) });
  }
}

const quit = async ({ qmp, daemon }: RunningDaemon) => {
  await qmp.execute("quit");
  expect(await daemon.exitSoon()).toBe(0);
};

describe("a vhost-user-blk export", () => {
  for (const packed of [false, true]) {
    test(`keeps what is written through a ${packed ? "packed" : "split"} ring`, async () => {
      await using place = await makePlace();
      await using running = await start(place, ",writable=on,num-queues=2");
      const guest = new Guest(place.socket, packed);
      await guest.start();
      expect(await guest.read(0, 8192)).toEqual(new Uint8Array(pattern(BYTES).subarray(0, 8192)));
      const content = new Uint8Array(pattern(65536, 7));
      expect(await guest.write(100, content)).toBe(OK);
      expect(await guest.queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(OK);
      const expected = new Uint8Array(pattern(BYTES));
      expected.set(content, 100 * 512);
      expect(new Uint8Array(readFileSync(place.image))).toEqual(expected);
      guest.close();
      await quit(running);
      expect(existsSync(place.socket)).toBe(false);
    });
  }

  test("refuses writes when it is not writable, and says so", async () => {
    await using place = await makePlace();
    await using _running = await start(place, "");
    const guest = new Guest(place.socket);
    const features = await guest.start();
    expect(features & (1n << BigInt(blk.VIRTIO_BLK_F_RO))).not.toBe(0n);
    expect(await guest.write(0, new Uint8Array(512))).toBe(blk.VIRTIO_BLK_S_IOERR);
    guest.close();
    expect(new Uint8Array(readFileSync(place.image))).toEqual(new Uint8Array(pattern(BYTES)));
  });

  test("tells its serial number", async () => {
    await using place = await makePlace();
    await using _running = await start(place, ",serial=S-123");
    const guest = new Guest(place.socket);
    await guest.start();
    const at = guest.ram.allocate(20);
    const data = [{ at, bytes: 20, write: true }];
    expect(await guest.queue.request(blk.VIRTIO_BLK_T_GET_ID, 0, data)).toBe(OK);
    const text = new TextDecoder().decode(guest.ram.u8.slice(at, at + 20));
    expect(text.replace(/\0+$/, "")).toBe("S-123");
    guest.close();
  });

  test("is refused with the words of qemu-storage-daemon", async () => {
    await using place = await makePlace();
    await using running = await start(place);
    const { qmp } = running;
    const unix = { type: "unix", path: `${place.socket}2` };
    const failure = async (more: Record<string, unknown>) => {
      const all = { type: "vhost-user-blk", id: "x", "node-name": "disk", addr: unix, ...more };
      return await qmp.execute("block-export-add", all).then(
        () => "no error",
        (error: Error) => error.message,
      );
    };
    const blockSize = "parameter logical-block-size must be a power of 2 between 512 and 2097152";
    expect(await failure({ "logical-block-size": 100, "num-queues": 0 })).toBe(blockSize);
    expect(await failure({ "logical-block-size": 4194304 })).toBe(blockSize);
    expect(await failure({ "num-queues": 0 })).toBe("num-queues must be greater than 0");
    expect(await failure({ "num-queues": 65536 })).toBe("Parameter 'num-queues' expects uint16_t");
    expect(await failure({ "num-queues": 1025 })).toBe("num-queues must be at most 1024");
    expect(await failure({ addr: { type: "vsock", cid: "1", port: "1" } })).toBe(
      "Only socket address types 'unix' and 'fd' are supported",
    );
    expect(await failure({ addr: { type: "fd", str: "5" } })).toBe(
      "only QEMU supports file descriptor passing",
    );
    expect(await failure({ "allow-inactive": true })).toBe(
      "Export type does not support inactive exports",
    );
    // Somebody listens there, and goes on to.
    expect(await failure({ addr: { type: "unix", path: place.socket } })).toBe(
      `Failed to bind socket to ${place.socket}: Address already in use`,
    );
    expect(await failure({})).toBe("no error");
    await qmp.execute("block-export-del", { id: "x" });
    await qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "x");
    expect(existsSync(unix.path)).toBe(false);
    expect(existsSync(place.socket)).toBe(true);
  });

  test("ends with its client, who is dropped", async () => {
    await using place = await makePlace();
    await using running = await start(place);
    const guest = new Guest(place.socket);
    await guest.start();
    await expect(running.qmp.execute("block-export-del", { id: "e" })).rejects.toThrow(
      "export 'e' still in use",
    );
    expect(await guest.write(0, new Uint8Array(512))).toBe(OK);
    await running.qmp.execute("block-export-del", { id: "e", mode: "hard" });
    await running.qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "e");
    expect(await guest.client.receive()).toBeNull();
    guest.close();
    await running.qmp.execute("blockdev-del", { "node-name": "disk" });
  });

  test("keeps its iothread from going, and moves along with its node and its client", async () => {
    await using place = await makePlace();
    const before = ["--object", "iothread,id=io0", "--object", "iothread,id=io1", ...place.nodes];
    await using running = await start(place, ",writable=on,iothread=io0", before);
    const { qmp } = running;
    await expect(qmp.execute("object-del", { id: "io0" })).rejects.toThrow("in use");
    const nbd = { type: "nbd", id: "n", "node-name": "disk", "fixed-iothread": true };
    await qmp.execute("nbd-server-start", {
      addr: { type: "unix", data: { path: `${place.socket}.nbd` } },
    });
    const move = async (iothread: string) => {
      await qmp.execute("block-export-add", { ...nbd, iothread });
      await qmp.execute("block-export-del", { id: "n" });
      await qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "n");
    };
    await move("io1");
    await qmp.execute("object-del", { id: "io0" });
    await qmp.execute("object-add", { "qom-type": "iothread", id: "io0" });
    for (const packed of [false, true]) {
      const guest = new Guest(place.socket, packed);
      await guest.start({ tracked: true });
      let isOver = false;
      let count = 0;
      const work = (async () => {
        for (; !isOver && count < 1000; count++) {
          expect(await guest.write(count, new Uint8Array(pattern(512, count + 1)))).toBe(OK);
        }
      })();
      for (let round = 0; round < 5; round++) {
        await move("io0");
        await move("io1");
      }
      isOver = true;
      await work;
      expect(count).toBeGreaterThan(0);
      for (let i = 0; i < Math.min(count, 50); i++) {
        expect(await guest.read(i, 512)).toEqual(new Uint8Array(pattern(512, i + 1)));
      }
      guest.close();
    }
    expect(running.daemon.stderr).toBe("");
  });
});

describe("block_resize under a vhost-user-blk export", () => {
  const resize = ({ qmp }: RunningDaemon, size: number) =>
    qmp.execute("block_resize", { "node-name": "disk", size });

  test("harms nothing without a client, or without a channel", async () => {
    await using place = await makePlace();
    await using running = await start(place);
    await resize(running, 2 * BYTES);
    const guest = new Guest(place.socket);
    await guest.start();
    expect(await guest.capacity()).toBe((2 * BYTES) / 512);
    await resize(running, 3 * BYTES);
    expect(await guest.capacity()).toBe((3 * BYTES) / 512);
    expect(await guest.write((3 * BYTES) / 512 - 1, new Uint8Array(512))).toBe(OK);
    guest.close();
  });

  test("reaches a guest that is at work", async () => {
    await using place = await makePlace();
    await using running = await start(place);
    const guest = new Guest(place.socket);
    await guest.start();
    expect(await guest.capacity()).toBe(BYTES / 512);
    const [ours, theirs] = linux.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK) as [
      number,
      number,
    ];
    await guest.client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [theirs]);
    linux.close(theirs);
    const channel = new VhostUserClient({ linux, fd: ours, pause: () => sleep(1) });
    let isOver = false;
    const work = (async () => {
      const block = new Uint8Array(pattern(512, 3));
      let count = 0;
      while (!isOver && count < 2000) {
        expect(await guest.write(count++ % 1000, block)).toBe(OK);
      }
    })();
    await resize(running, 2 * BYTES);
    expect((await channel.receive())?.request).toBe(vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    isOver = true;
    await work;
    expect(await guest.capacity()).toBe((2 * BYTES) / 512);
    // Nobody takes the next one.
    channel.close();
    await resize(running, 3 * BYTES);
    expect(await guest.write(0, new Uint8Array(512))).toBe(OK);
    guest.close();
  });
});

/** Of the last entry in a log of blklogwrites. */
function lastFlags(path: string): number {
  const log = readFileSync(path);
  const sectorBytes = log.readUInt32LE(LOG_SUPER_SECTORSIZE);
  const count = Number(log.readBigUInt64LE(LOG_SUPER_NR_ENTRIES));
  let at = sectorBytes;
  let flags = 0;
  for (let i = 0; i < count; i++) {
    flags = Number(log.readBigUInt64LE(at + LOG_ENTRY_FLAGS));
    at += sectorBytes * (1 + Number(log.readBigUInt64LE(at + LOG_ENTRY_NR_SECTORS)));
  }
  return flags;
}

describe("a vhost-user-blk export whose driver turned the write cache off", () => {
  test("makes each write stable, also after it was killed and started again", async () => {
    await using place = await makePlace();
    const log = `${place.directory}/writes.log`;
    writeFileSync(log, "");
    const serve = (append: string) =>
      start({ ...place, exportOptions: place.exportOptions.replace("=disk", "=l") }, undefined, [
        ...place.nodes,
        ...["--blockdev", `file,node-name=log,filename=${log}`],
        ...["--blockdev", `blklogwrites,node-name=l,file=disk,log=log,${append}`],
      ]);
    const isStable = async (): Promise<boolean> => {
      expect(await guest.write(0, new Uint8Array(4096))).toBe(OK);
      return (lastFlags(log) & (LOG_FUA_FLAG | LOG_FLUSH_FLAG)) !== 0;
    };
    const first = await serve("log-super-update-interval=1");
    const guest = new Guest(place.socket);
    await guest.start({ tracked: true });
    expect(await isStable()).toBe(true);
    expect(await guest.queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(OK);
    expect(await isStable()).toBe(false);
    const off = Uint8Array.of(...words(blk.VIRTIO_BLK_CONFIG_WCE, 1, 0), 0);
    expect(await guest.client.tell(vu.VHOST_USER_SET_CONFIG, off)).toBe(0n);
    expect(await isStable()).toBe(true);
    first.daemon.kill();
    await first.daemon.exitSoon();
    first.qmp.close();
    unlinkSync(first.pidfile);

    await using _second = await serve("log-super-update-interval=1,log-append=on");
    guest.reconnect();
    await guest.start({ base: 4, tracked: true });
    expect(await isStable()).toBe(true);
    expect(await guest.queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(OK);
    expect(await isStable()).toBe(true);
    guest.close();
  });
});

describe("a vhost-user-blk export that is killed in the middle of writes", () => {
  for (const packed of [false, true]) {
    test(`does the rest when it is back, on a ${packed ? "packed" : "split"} ring`, async () => {
      await using place = await makePlace();
      const COUNT = 48;
      const BLOCK = 4096;
      const slow = [
        ...["--object", "throttle-group,id=tg,x-iops-total=20", ...place.nodes],
        ...["--blockdev", "throttle,node-name=slow,throttle-group=tg,file=disk"],
      ];
      const slowOptions = {
        ...place,
        exportOptions: place.exportOptions.replace("=disk", "=slow"),
      };
      const first = await start(slowOptions, ",writable=on", slow);
      const guest = new Guest(place.socket, packed);
      await guest.start({ tracked: true });
      const statuses: number[] = [];
      const expected = new Uint8Array(pattern(BYTES));
      for (let i = 0; i < COUNT; i++) {
        const content = new Uint8Array(pattern(BLOCK, 100 + i));
        const at = guest.ram.allocate(BLOCK, 512);
        guest.ram.u8.set(content, at);
        expected.set(content, i * BLOCK);
        const data = [{ at, bytes: BLOCK, write: false }];
        statuses.push(guest.queue.submit(blk.VIRTIO_BLK_T_OUT, (i * BLOCK) / 512, data));
      }
      const used: number[] = [];
      const collect = () => used.push(...guest.queue.queue.collect().map(({ id }) => id));
      await guest.client.until(() => collect() > 2);
      first.daemon.kill();
      await first.daemon.exitSoon();
      first.qmp.close();
      unlinkSync(first.pidfile);
      collect();
      expect(used.length).toBeLessThan(COUNT);

      await using _second = await start(place);
      guest.reconnect();
      await guest.start({ base: used.length, tracked: true });
      await guest.client.until(() => collect() === COUNT);
      await sleep(50);
      expect(collect()).toBe(COUNT);
      expect(new Set(used).size).toBe(COUNT);
      expect(statuses.map((at) => guest.ram.u8[at])).toEqual(new Array(COUNT).fill(OK));
      guest.close();
      expect(new Uint8Array(readFileSync(place.image))).toEqual(expected);
    });
  }
});
