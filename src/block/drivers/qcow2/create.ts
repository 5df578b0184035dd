/**
 * New images, for blockdev-create: writes all tables, and the header last, so that what is not
 * finished is no image. Thread: iothread; everything may suspend.
 * Spec: QEMU docs/interop/qcow2.rst; block/qcow2.c qcow2_co_create()
 */
import * as abi from "../../../abi/qcow2.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import type { BlockBackend } from "../../backend.ts";
import type { CreateContext, ImageCreation } from "../../driver.ts";
import {
  type BlockStatus,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  STATUS_ZERO,
} from "../../node.ts";
import {
  type NewImage,
  planImage,
  type Qcow2CreateOptions,
  qcow2CreateMembers,
} from "./create-options.ts";
import { prepareEncryption } from "./encryption-create.ts";
import { setU64, viewOf } from "./header.ts";
import { newHeader } from "./new-header.ts";

/** Nobody can cancel what is asked for at once. */
const ZERO_BYTES_MAX = 1024 * 1024 * 1024;
const BUFFER_BYTES = 1024 * 1024;

export const qcow2Creation: ImageCreation = {
  nodes: [
    { role: "file", optional: false },
    { role: "data-file", optional: true },
  ],
  members: qcow2CreateMembers,
  plan(given, roles) {
    const options = given as unknown as Qcow2CreateOptions;
    const image = planImage(options, roles.includes("data-file"));
    // Now, while nothing is lost: names may be too long.
    newHeader(image, undefined);
    return {
      file: { bytes: image.fileBytes, keepsData: false },
      // QSD differs: it cuts off what is beyond.
      "data-file": { bytes: image.bytes, keepsData: true },
    };
  },
  prepare: (options, findSecret) =>
    prepareEncryption((options as unknown as Qcow2CreateOptions).encrypt, findSecret),
  async create(context) {
    const { file, "data-file": dataFile } = context.targets;
    const options = context.options as unknown as Qcow2CreateOptions;
    const image = planImage(options, dataFile !== undefined);
    const header = newHeader(image, dataFile?.filename);
    const writer = new ImageWriter(context, file!.backend, image);
    await writer.clear();
    if (dataFile === undefined) {
      await writer.preallocate(file!.backend, image.dataOffset, image.fileBytes);
    } else {
      await writer.preallocate(dataFile.backend, 0, image.bytes);
    }
    if (image.encryptionBytes > 0) await writer.writeEncryption(context.prepared as Uint8Array);
    await writer.writeTables();
    await writer.writeHeader(header);
  },
};

class ImageWriter {
  #reactor: Reactor;
  #checkWanted: () => void;
  #file: BlockBackend;
  #image: NewImage;

  constructor({ reactor, checkWanted }: CreateContext, file: BlockBackend, image: NewImage) {
    this.#reactor = reactor;
    this.#checkWanted = checkWanted;
    this.#file = file;
    this.#image = image;
  }

  /** Nothing that was there is left where tables and guest data come to lie. */
  async clear(): Promise<void> {
    await this.#forEachExtent(this.#file, 0, this.#image.fileBytes, async (at, bytes, isZero) => {
      if (!isZero) await this.#request(this.#file, OP_WRITE_ZEROES, at, bytes);
    });
  }

  /** Makes the host keep room for holes, if that is wanted. */
  async preallocate(backend: BlockBackend, start: number, end: number): Promise<void> {
    const { preallocation } = this.#image;
    if (preallocation !== "falloc" && preallocation !== "full") return;
    await this.#forEachExtent(backend, start, end, async (at, bytes, isZero) => {
      if (!isZero) return;
      if (preallocation === "falloc") await this.#request(backend, OP_WRITE_ZEROES, at, bytes);
      else await this.#write(backend, at, bytes, () => {});
    });
    await this.#request(backend, OP_FLUSH, 0, 0);
  }

  /** `area`: the LUKS header and its first key slot; others are zeroes. */
  async writeEncryption(area: Uint8Array): Promise<void> {
    await this.#write(this.#file, this.#image.encryptionOffset, area.length, (part, at) => {
      part.set(area.subarray(at, at + part.length));
    });
  }

  /** In the order in which they lie. What is zero is there already. */
  async writeTables(): Promise<void> {
    const image = this.#image;
    const { clusterBytes, clusterCount, refcountBits } = image;
    const perBlock = (clusterBytes * 8) / refcountBits;
    const blockCount = Math.ceil(clusterCount / perBlock);
    await this.#writeEntries(clusterBytes, blockCount, (view, at, i) =>
      setU64(view, at, image.refcountBlocksOffset + i * clusterBytes),
    );
    await this.#writeRefcounts();
    await this.#writeEntries(image.l1TableOffset, image.l2TableCount, (view, at, i) =>
      setMapping(view, at, image.l2TablesOffset + i * clusterBytes),
    );
    if (image.l2TableCount > 0) await this.#writeMappings();
    await this.#request(this.#file, OP_FLUSH, 0, 0);
  }

  async writeHeader(header: Uint8Array): Promise<void> {
    await this.#write(this.#file, 0, header.length, (part, at) => {
      part.set(header.subarray(at, at + part.length));
    });
    await this.#request(this.#file, OP_FLUSH, 0, 0);
    if (!(await this.#hasMagic())) {
      // Of a node that forgets what is written.
      throw new OutportError("io", "Image is not in qcow2 format");
    }
  }

  /** One for each cluster. */
  async #writeRefcounts(): Promise<void> {
    const { clusterCount, refcountBits, refcountBlocksOffset } = this.#image;
    const bytes = Math.ceil((clusterCount * refcountBits) / 8);
    const entryBytes = refcountBits / 8;
    // Of bytes that are all full of ones; the last may not be.
    const pattern = refcountBits < 8 ? 0xff / (2 ** refcountBits - 1) : 1;
    await this.#write(this.#file, refcountBlocksOffset, bytes, (part, at) => {
      if (entryBytes > 1) {
        for (let i = entryBytes - 1; i < part.length; i += entryBytes) part[i] = 1;
        return;
      }
      part.fill(pattern);
      const left = clusterCount * refcountBits - at * 8;
      const spare = part.length * 8 - left;
      if (spare > 0) part[part.length - 1]! &= 0xff >> spare;
    });
  }

  async #writeMappings(): Promise<void> {
    const { bytes, clusterBytes, hasSubclusters, hasDataFile, ...image } = this.#image;
    const entryBytes = hasSubclusters ? abi.L2E_SIZE_EXTENDED : abi.L2E_SIZE_NORMAL;
    const count = Math.ceil(bytes / clusterBytes);
    const start = hasDataFile ? 0 : image.dataOffset;
    // All subclusters stay unallocated: what is behind them shows.
    await this.#writeEntries(
      image.l2TablesOffset,
      count,
      (view, at, i) => setMapping(view, at, start + i * clusterBytes),
      entryBytes,
    );
  }

  /** `count` entries of a table, or of tables in one run. */
  #writeEntries(
    offset: number,
    count: number,
    fill: (view: DataView, at: number, index: number) => void,
    entryBytes: number = abi.ENTRY_BYTES,
  ): Promise<void> {
    return this.#write(this.#file, offset, count * entryBytes, (part, done) => {
      const view = viewOf(part);
      const first = done / entryBytes;
      for (let at = 0; at < part.length; at += entryBytes) fill(view, at, first + at / entryBytes);
    });
  }

  /** `fill` gets zeroes to change, and how many bytes come before them. */
  async #write(
    backend: BlockBackend,
    offset: number,
    bytes: number,
    fill: (part: Uint8Array, done: number) => void,
  ): Promise<void> {
    if (bytes === 0) return;
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(Math.min(bytes, BUFFER_BYTES));
    try {
      for (let done = 0; done < bytes; done += BUFFER_BYTES) {
        const part = Math.min(bytes - done, BUFFER_BYTES);
        const view = memory.u8.subarray(at, at + part);
        view.fill(0);
        fill(view, done);
        await this.#request(backend, OP_WRITE, offset + done, part, memory.address + at);
      }
    } finally {
      buffers.free(at);
    }
  }

  async #hasMagic(): Promise<boolean> {
    const { memory, buffers } = this.#reactor;
    const bytes = abi.HEADER_VERSION;
    const at = await this.#reactor.allocate(bytes);
    try {
      await this.#request(this.#file, OP_READ, 0, bytes, memory.address + at);
      return viewOf(memory.u8.subarray(at, at + bytes)).getUint32(0) === abi.QCOW_MAGIC;
    } finally {
      buffers.free(at);
    }
  }

  async #forEachExtent(
    backend: BlockBackend,
    start: number,
    end: number,
    visit: (offset: number, bytes: number, isZero: boolean) => Promise<void>,
  ): Promise<void> {
    const { node } = backend;
    const out: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    for (let at = start; at < end; at += out.bytes) {
      this.#checkWanted();
      const bytes = Math.min(end - at, ZERO_BYTES_MAX);
      const result = await backend.ask(() => node.blockStatus(at, bytes, out));
      if (result < 0) throw failed("Could not look at what is there", result);
      await visit(at, out.bytes, (out.flags & STATUS_ZERO) !== 0);
    }
  }

  async #request(
    backend: BlockBackend,
    op: Op,
    offset: number,
    bytes: number,
    address = 0,
  ): Promise<void> {
    this.#checkWanted();
    const result = await backend.request(op, offset, bytes, address, 0);
    if (result < 0) throw failed("Could not write the image", result);
  }
}

/** An L1 or L2 entry of what only the active tables refer to. */
function setMapping(view: DataView, at: number, offset: number): void {
  setU64(view, at, offset);
  view.setUint32(at, (view.getUint32(at) | abi.QCOW_OFLAG_COPIED_HI) >>> 0);
}

function failed(what: string, result: number): OutportError {
  return new OutportError("io", `${what}: ${strerror(result)}`);
}
