/**
 * A format so small that its order of writes is plain to see, and three wrong ways to write it that
 * the crash tests must find. A sector of zeroes, a table of cluster numbers, then clusters; where
 * the table has none, the first version of each sector shows.
 */
import { type Op, type Resolution, type ResolutionKind, SLOW } from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { FakeNode } from "../support/fake-node.ts";
import { SECTOR_BYTES } from "./disk.ts";
import type { SimDiskNode } from "./disk-node.ts";
import { FIRST_VERSION, firstVersions } from "./guest-model.ts";
import type { PowerCutSubject } from "./power-cut.ts";

const CLUSTER_BYTES = 2048;
const CLUSTER_COUNT = 256;
const TABLE_OFFSET = SECTOR_BYTES;
const TABLE_BYTES = CLUSTER_COUNT * 4;
const DATA_OFFSET = TABLE_OFFSET + TABLE_BYTES;

export type ToyFault =
  /** The table is written while the data is still on its way to the disk. */
  | "table before data"
  /** A flush is nothing. */
  | "no flush"
  /** A new cluster is taken without waiting for another request that takes one. */
  | "shared cluster";

export function toySubject(fault: ToyFault | null): PowerCutSubject {
  return {
    image: new Uint8Array(DATA_OFFSET),
    bytes: CLUSTER_COUNT * CLUSTER_BYTES,
    initial: () => FIRST_VERSION,
    clusterBytes: CLUSTER_BYTES,
    open: async (reactor, disk) => {
      const node = new ToyNode(reactor, disk as SimDiskNode, fault);
      await node.load();
      return node;
    },
    check: checkToy,
    read: readToy,
  };
}

class ToyNode extends FakeNode {
  #disk: SimDiskNode["disk"];
  #fault: ToyFault | null;
  #table = new Uint8Array(TABLE_BYTES);
  #entries = new DataView(this.#table.buffer);
  #nextCluster = 1;
  #reactorMemory: Reactor["memory"];
  /** One change at a time; reads don't wait. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(reactor: Reactor, file: SimDiskNode, fault: ToyFault | null) {
    super(reactor, CLUSTER_COUNT * CLUSTER_BYTES);
    this.#disk = file.disk;
    this.#fault = fault;
    this.#reactorMemory = reactor.memory;
  }

  async load(): Promise<void> {
    const error = await this.#disk.read(TABLE_OFFSET, this.#table);
    if (error !== 0) throw new Error("the disk fails");
    // Behind the end of the file, so that nothing there can be in use.
    const used = Math.ceil((this.#disk.bytes - DATA_OFFSET) / CLUSTER_BYTES);
    this.#nextCluster = Math.max(0, used) + 1;
  }

  override resolve(_op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.offset = offset;
    out.bytes = bytes;
    return SLOW;
  }

  override async read(offset: number, bytes: number, address: number): Promise<number> {
    const target = this.#payload(address, bytes);
    for (let done = 0; done < bytes; ) {
      const at = offset + done;
      const start = at % CLUSTER_BYTES;
      const part = Math.min(CLUSTER_BYTES - start, bytes - done);
      const cluster = Math.floor(at / CLUSTER_BYTES);
      const content = await this.#readCluster(cluster);
      if (content === null) return -5;
      target.set(content.subarray(start, start + part), done);
      done += part;
    }
    return 0;
  }

  override write(offset: number, bytes: number, address: number): Promise<number> {
    const data = this.#payload(address, bytes).slice();
    return this.#inTurn(() => this.#writeAll(offset, data));
  }

  override writeZeroes(offset: number, bytes: number): Promise<number> {
    return this.#inTurn(() => this.#writeAll(offset, new Uint8Array(bytes)));
  }

  override async discard(): Promise<number> {
    return 0;
  }

  override async flush(): Promise<number> {
    return this.#fault === "no flush" ? 0 : this.#disk.flush();
  }

  #inTurn(task: () => Promise<number>): Promise<number> {
    if (this.#fault === "shared cluster") return task();
    const result = this.#last.then(task);
    this.#last = result;
    return result;
  }

  async #writeAll(offset: number, data: Uint8Array): Promise<number> {
    for (let done = 0; done < data.length; ) {
      const at = offset + done;
      const start = at % CLUSTER_BYTES;
      const part = Math.min(CLUSTER_BYTES - start, data.length - done);
      const cluster = Math.floor(at / CLUSTER_BYTES);
      const error = await this.#writeCluster(cluster, start, data.subarray(done, done + part));
      if (error !== 0) return error;
      done += part;
    }
    return 0;
  }

  async #writeCluster(cluster: number, start: number, data: Uint8Array): Promise<number> {
    const host = this.#entries.getUint32(cluster * 4);
    if (host !== 0) return this.#disk.write(hostOffset(host) + start, data);
    const fresh = this.#nextCluster;
    const content = firstContent(cluster);
    content.set(data, start);
    if (this.#fault === "shared cluster") {
      const error = await this.#disk.write(hostOffset(fresh), content);
      if (error !== 0) return error;
      this.#nextCluster = fresh + 1;
      return this.#enter(cluster, fresh);
    }
    this.#nextCluster = fresh + 1;
    if (this.#fault === "table before data") {
      const error = await this.#enter(cluster, fresh);
      return error === 0 ? this.#disk.write(hostOffset(fresh), content) : error;
    }
    let error = await this.#disk.write(hostOffset(fresh), content);
    if (error === 0) error = await this.#disk.flush();
    return error === 0 ? this.#enter(cluster, fresh) : error;
  }

  async #enter(cluster: number, host: number): Promise<number> {
    this.#entries.setUint32(cluster * 4, host);
    const start = Math.floor((cluster * 4) / SECTOR_BYTES) * SECTOR_BYTES;
    const sector = this.#table.subarray(start, start + SECTOR_BYTES);
    return this.#disk.write(TABLE_OFFSET + start, sector);
  }

  async #readCluster(cluster: number): Promise<Uint8Array | null> {
    const host = this.#entries.getUint32(cluster * 4);
    if (host === 0) return firstContent(cluster);
    const content = new Uint8Array(CLUSTER_BYTES);
    return (await this.#disk.read(hostOffset(host), content)) === 0 ? content : null;
  }

  #payload(address: number, bytes: number): Uint8Array {
    const at = address - this.#reactorMemory.address;
    return this.#reactorMemory.u8.subarray(at, at + bytes);
  }
}

function hostOffset(cluster: number): number {
  return DATA_OFFSET + (cluster - 1) * CLUSTER_BYTES;
}

function firstContent(cluster: number): Uint8Array {
  return firstVersions(cluster * CLUSTER_BYTES, CLUSTER_BYTES);
}

function tableOf(image: Uint8Array): number[] {
  const view = new DataView(image.buffer, image.byteOffset + TABLE_OFFSET);
  return Array.from({ length: CLUSTER_COUNT }, (_, i) => view.getUint32(i * 4));
}

function checkToy(image: Uint8Array): string {
  const hosts = tableOf(image).filter((host) => host !== 0);
  return new Set(hosts).size === hosts.length ? "" : "two clusters are in one place";
}

function readToy(image: Uint8Array): Uint8Array {
  const whole = new Uint8Array(CLUSTER_COUNT * CLUSTER_BYTES);
  for (const [cluster, host] of tableOf(image).entries()) {
    const at = hostOffset(host);
    const content = host === 0 ? firstContent(cluster) : image.subarray(at, at + CLUSTER_BYTES);
    whole.set(content, cluster * CLUSTER_BYTES);
  }
  return whole;
}
