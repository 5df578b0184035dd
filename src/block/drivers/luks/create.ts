/**
 * New LUKS volumes, for blockdev-create. Thread: main (plan, prepare), iothread.
 * Spec: qapi/block-core.json BlockdevCreateOptionsLUKS; QEMU block/crypto.c
 */
import { type LuksCreateOptions, luksKeyBytes, makeLuks } from "../../../crypto/luks-create.ts";
import { payloadOffset } from "../../../crypto/luks-layout.ts";
import { passphraseOf } from "../../../crypto/passphrase.ts";
import { preallocMode } from "../../../qapi/block.ts";
import { luksCreateMembers } from "../../../qapi/crypto.ts";
import { doc, optional, size } from "../../../qapi/scalars.ts";
import { strerror } from "../../../runtime/errno.ts";
import { invalid, OutportError } from "../../../util/error.ts";
import type { BlockBackend } from "../../backend.ts";
import { LENGTH_MAX } from "../../description.ts";
import type { CreateContext, ImageCreation } from "../../driver.ts";
import {
  type BlockStatus,
  OP_FLUSH,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  STATUS_ZERO,
} from "../../node.ts";

/** Nobody can cancel what is asked for at once. */
const ZERO_BYTES_MAX = 1024 * 1024 * 1024;
const BUFFER_BYTES = 1024 * 1024;

type Options = LuksCreateOptions & {
  readonly size: number;
  readonly preallocation?: "off" | "metadata" | "falloc" | "full";
};

/** Where the parts of a volume lie: with a header of its own, the data starts at 0. */
function placesOf(options: Options, isDetached: boolean) {
  const headerBytes = payloadOffset(luksKeyBytes(options));
  return { headerBytes, start: isDetached ? 0 : headerBytes };
}

export const luksCreation: ImageCreation = {
  nodes: [
    { role: "file", optional: true, after: "iter-time" },
    { role: "header", optional: true, after: "file" },
  ],
  members: () => ({
    ...luksCreateMembers,
    size: doc(size, "Length of the guest's disk, bytes"),
    preallocation: optional(preallocMode, "What the host keeps room for (default: off)"),
  }),
  plan(given, roles) {
    const options = given as unknown as Options;
    const { headerBytes, start } = placesOf(options, roles.includes("header"));
    const bytes = start + options.size;
    if (bytes > LENGTH_MAX) {
      throw new OutportError("limit", "The requested file size is too large");
    }
    return {
      file: { bytes, keepsData: false },
      header: { bytes: headerBytes, keepsData: false },
    };
  },
  async prepare(given, findSecret, roles) {
    const options = given as unknown as Options;
    if (roles.length === 0) {
      throw invalid("Either the parameter 'header' or 'file' must be specified");
    }
    if ((options.preallocation ?? "off") !== "off" && !roles.includes("file")) {
      const what = "'file' to be specified for formatting LUKS disk";
      throw invalid(`Parameter 'preallocation' requires ${what}`);
    }
    const { "key-secret": id } = options;
    if (id === undefined) throw invalid("Parameter 'key-secret' is required for cipher");
    const isDetached = roles.includes("header");
    const made = await makeLuks(options, passphraseOf(id, findSecret), isDetached);
    made.masterKey.fill(0);
    return made.area;
  },
  async create(context) {
    const { file, header } = context.targets;
    const options = context.options as unknown as Options;
    const { headerBytes, start } = placesOf(options, header !== undefined);
    const writer = new VolumeWriter(context);
    const { preallocation } = options;
    if (preallocation === "falloc") {
      await writer.allocate(file!.backend, start, start + options.size);
    } else if (preallocation === "full") {
      await writer.write(file!.backend, start, start + options.size, () => {});
    }
    const area = context.prepared as Uint8Array;
    const { backend } = (header ?? file)!;
    // Behind the first key slot: nothing of what was there is left.
    await writer.clear(backend, area.length, headerBytes);
    await writer.write(backend, 0, area.length, (part, at) => {
      part.set(area.subarray(at, at + part.length));
    });
    for (const { backend: one } of Object.values(context.targets)) await writer.flush(one);
  },
};

class VolumeWriter {
  #context: CreateContext;

  constructor(context: CreateContext) {
    this.#context = context;
  }

  /** [start, end), with zeroes. */
  async allocate(backend: BlockBackend, start: number, end: number): Promise<void> {
    for (let at = start; at < end; at += ZERO_BYTES_MAX) {
      await this.#request(backend, OP_WRITE_ZEROES, at, Math.min(end - at, ZERO_BYTES_MAX));
    }
  }

  /** What reads as zeroes in [start, end) stays as it is. */
  async clear(backend: BlockBackend, start: number, end: number): Promise<void> {
    const out: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    for (let at = start; at < end; at += out.bytes) {
      const asked = Math.min(end - at, ZERO_BYTES_MAX);
      const result = await backend.ask(() => backend.node.blockStatus(at, asked, out));
      if (result < 0) out.bytes = asked;
      if (result === 0 && (out.flags & STATUS_ZERO) !== 0) continue;
      await this.#request(backend, OP_WRITE_ZEROES, at, out.bytes);
    }
  }

  /** [start, end): `fill` gets zeroes to change, and how many bytes come before them. */
  async write(
    backend: BlockBackend,
    start: number,
    end: number,
    fill: (part: Uint8Array, done: number) => void,
  ): Promise<void> {
    const { memory, buffers } = this.#context.reactor;
    const at = await this.#context.reactor.allocate(BUFFER_BYTES);
    try {
      for (let offset = start; offset < end; offset += BUFFER_BYTES) {
        const part = memory.u8.subarray(at, at + Math.min(BUFFER_BYTES, end - offset));
        part.fill(0);
        fill(part, offset - start);
        await this.#request(backend, OP_WRITE, offset, part.length, memory.address + at);
      }
    } finally {
      buffers.free(at);
    }
  }

  flush(backend: BlockBackend): Promise<void> {
    return this.#request(backend, OP_FLUSH, 0, 0);
  }

  async #request(
    backend: BlockBackend,
    op: Op,
    offset: number,
    bytes: number,
    address = 0,
  ): Promise<void> {
    this.#context.checkWanted();
    const result = await backend.request(op, offset, bytes, address, 0);
    if (result < 0) {
      throw new OutportError("io", `Could not write the volume: ${strerror(result)}`);
    }
  }
}
