/**
 * An NBD client for tests: haggles for any kind of replies and contexts, sends requests without
 * waiting for replies, and shows every chunk. `stream` sends raw bytes at any moment.
 */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_GREETING_BYTES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_LIST,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTION_REPLY_HEADER_BYTES,
  NBD_REP_ACK,
  NBD_REP_FLAG_ERROR,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
} from "../../src/abi/nbd.ts";
import { type Address, ByteStream } from "./byte-stream.ts";
import { type Chunk, type Extent, NbdReply, type ReplyShape, readChunk } from "./nbd-reply.ts";
import {
  concat,
  infoData,
  metaData,
  type OptionReply,
  option,
  request,
  textOf,
  u32,
  u64,
  viewOf,
} from "./nbd-wire.ts";

export type Mode = "simple" | "structured" | "extended";

export interface OpenOptions {
  /** "" unless given. */
  readonly exportName?: string;
  /** "structured" unless given. */
  readonly mode?: Mode;
  /** Meta contexts to ask for. */
  readonly contexts?: readonly string[];
}

/** What the server told about the export. */
export interface ExportFacts {
  readonly bytes: number;
  readonly flags: number;
  readonly blockSize: { readonly min: number; readonly preferred: number; readonly max: number };
}

/** A request that failed; `value` is the NBD_E* number. */
export class NbdError extends Error {
  readonly value: number;

  constructor(value: number, message: string) {
    super(`NBD error ${value}: ${message}`);
    this.value = value;
  }
}

interface Pending {
  readonly shape: ReplyShape;
  readonly chunks: Chunk[];
  readonly resolve: (reply: NbdReply) => void;
  readonly reject: (error: unknown) => void;
}

export class NbdClient {
  readonly stream: ByteStream;
  mode: Mode = "simple";
  facts: ExportFacts = { bytes: 0, flags: 0, blockSize: { min: 1, preferred: 4096, max: 2 ** 25 } };
  /** Chosen contexts: id to name. */
  readonly contexts = new Map<number, string>();
  #pending = new Map<number, Pending>();
  #nextCookie = 1;

  constructor(stream: ByteStream) {
    this.stream = stream;
  }

  /** Connected, nothing said yet. */
  static async connect(address: Address): Promise<NbdClient> {
    return new NbdClient(await ByteStream.connect(address));
  }

  /** Connected and in transmission. */
  static async open(address: Address, options: OpenOptions = {}): Promise<NbdClient> {
    const client = await NbdClient.connect(address);
    try {
      await client.greet();
      await client.go(options);
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  /** Names of the exports that the server at `address` lists. */
  static async list(address: Address): Promise<string[]> {
    const client = await NbdClient.connect(address);
    await client.greet();
    const replies = await client.option(NBD_OPT_LIST);
    client.close();
    return replies
      .slice(0, -1)
      .map(({ data }) => textOf(data.subarray(4, 4 + viewOf(data).getUint32(0))));
  }

  /** Reads the greeting, sends the flags. */
  async greet(flags = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES): Promise<Uint8Array> {
    const greeting = await this.stream.read(NBD_GREETING_BYTES);
    await this.stream.send(u32(flags));
    return greeting;
  }

  /** Sends an option; all its replies, the last of which is an ACK or an error. */
  async option(code: number, data: Uint8Array = new Uint8Array(0)): Promise<OptionReply[]> {
    await this.stream.send(option(code, data));
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.optionReply();
      replies.push(reply);
      if (reply.type === NBD_REP_ACK || reply.type >= NBD_REP_FLAG_ERROR) return replies;
    }
  }

  async optionReply(): Promise<OptionReply> {
    const header = viewOf(await this.stream.read(NBD_OPTION_REPLY_HEADER_BYTES));
    const data = await this.stream.read(header.getUint32(16));
    return { option: header.getUint32(8), type: header.getUint32(12), data };
  }

  /** Negotiates and enters transmission. Throws what the server refuses. */
  async go(options: OpenOptions = {}): Promise<void> {
    const name = options.exportName ?? "";
    this.mode = options.mode ?? "structured";
    if (this.mode === "structured") await this.#agree(NBD_OPT_STRUCTURED_REPLY);
    if (this.mode === "extended") await this.#agree(NBD_OPT_EXTENDED_HEADERS);
    if (options.contexts !== undefined) {
      const data = metaData(name, options.contexts);
      for (const reply of await this.#agree(NBD_OPT_SET_META_CONTEXT, data)) {
        if (reply.type !== NBD_REP_META_CONTEXT) continue;
        this.contexts.set(viewOf(reply.data).getUint32(0), textOf(reply.data.subarray(4)));
      }
    }
    const replies = await this.#agree(NBD_OPT_GO, infoData(name, [NBD_INFO_BLOCK_SIZE]));
    for (const reply of replies) if (reply.type === NBD_REP_INFO) this.#learn(viewOf(reply.data));
    this.startTransmission();
  }

  async #agree(code: number, data?: Uint8Array): Promise<OptionReply[]> {
    const replies = await this.option(code, data);
    const last = replies.at(-1)!;
    if (last.type !== NBD_REP_ACK) {
      throw new Error(`option ${code} refused with ${last.type}: ${textOf(last.data)}`);
    }
    return replies;
  }

  #learn(info: DataView): void {
    if (info.getUint16(0) === NBD_INFO_EXPORT) {
      const bytes = Number(info.getBigUint64(2));
      this.facts = { ...this.facts, bytes, flags: info.getUint16(10) };
    } else if (info.getUint16(0) === NBD_INFO_BLOCK_SIZE) {
      const [min, preferred, max] = [info.getUint32(2), info.getUint32(6), info.getUint32(10)];
      this.facts = { ...this.facts, blockSize: { min, preferred, max } };
    }
  }

  /** Begins to take replies; go() does it. For handshakes that a test made by hand. */
  startTransmission(): void {
    this.#receive().catch((error: unknown) => {
      for (const pending of this.#pending.values()) pending.reject(error);
      this.#pending.clear();
    });
  }

  async #receive(): Promise<never> {
    for (;;) {
      const header = await this.stream.read(16);
      const cookie = viewOf(header).getUint32(12);
      const pending = this.#pending.get(cookie);
      if (pending === undefined) throw new Error(`a reply to unknown cookie ${cookie}`);
      const chunk = await readChunk(this.stream, header, pending.shape);
      pending.chunks.push(chunk);
      if (!chunk.done) continue;
      this.#pending.delete(cookie);
      pending.resolve(new NbdReply(pending.shape, pending.chunks));
    }
  }

  /** Requests sent and not answered yet. */
  get inFlight(): number {
    return this.#pending.size;
  }

  /** Sends a request; its whole reply, be it success or error. */
  request(
    type: number,
    offset: number | bigint,
    length: number | bigint,
    options: { flags?: number; payload?: Uint8Array } = {},
  ): Promise<NbdReply> {
    const cookie = this.#nextCookie++;
    const flags = options.flags ?? 0;
    const shape = { command: type, offset: Number(offset), length: Number(length) };
    return new Promise((resolve, reject) => {
      if (this.stream.ended) return reject(new Error("the connection is closed"));
      this.#pending.set(cookie, { shape, chunks: [], resolve, reject });
      const header = { type, flags, cookie, offset, length };
      const message = request(header, this.mode === "extended");
      void this.stream.send(...(options.payload ? [message, options.payload] : [message]));
    });
  }

  async read(offset: number, length: number, flags = 0): Promise<Uint8Array> {
    return succeeded(await this.request(NBD_CMD_READ, offset, length, { flags })).data();
  }

  async write(offset: number, payload: Uint8Array, flags = 0): Promise<void> {
    const all = this.mode === "extended" ? flags | NBD_CMD_FLAG_PAYLOAD_LEN : flags;
    const options = { flags: all, payload };
    succeeded(await this.request(NBD_CMD_WRITE, offset, payload.length, options));
  }

  writeFua(offset: number, payload: Uint8Array): Promise<void> {
    return this.write(offset, payload, NBD_CMD_FLAG_FUA);
  }

  async flush(): Promise<void> {
    succeeded(await this.request(NBD_CMD_FLUSH, 0, 0));
  }

  async trim(offset: number, length: number, flags = 0): Promise<void> {
    succeeded(await this.request(NBD_CMD_TRIM, offset, length, { flags }));
  }

  async writeZeroes(offset: number, length: number, flags = 0): Promise<void> {
    succeeded(await this.request(NBD_CMD_WRITE_ZEROES, offset, length, { flags }));
  }

  async cache(offset: number, length: number): Promise<void> {
    succeeded(await this.request(NBD_CMD_CACHE, offset, length));
  }

  /** Extents by context name. `only`: ids sent as payload, in extended mode. */
  async blockStatus(
    offset: number,
    length: number,
    options: { flags?: number; only?: readonly number[] } = {},
  ): Promise<Map<string, Extent[]>> {
    let reply: NbdReply;
    if (options.only === undefined) {
      reply = await this.request(NBD_CMD_BLOCK_STATUS, offset, length, { ...options });
    } else {
      const payload = concat(u64(length), ...options.only.map(u32));
      const flags = (options.flags ?? 0) | NBD_CMD_FLAG_PAYLOAD_LEN;
      const sent = { flags, payload };
      reply = await this.request(NBD_CMD_BLOCK_STATUS, offset, payload.length, sent);
    }
    const result = new Map<string, Extent[]>();
    for (const { contextId, extents } of succeeded(reply).statuses()) {
      result.set(this.contexts.get(contextId) ?? `unknown context ${contextId}`, extents);
    }
    return result;
  }

  /** Says goodbye; resolves when the server has closed. */
  async disconnect(): Promise<void> {
    await this.stream.send(request({ type: NBD_CMD_DISC }, this.mode === "extended"));
    while (!this.stream.ended) await new Promise((resolve) => setTimeout(resolve, 1));
    this.close();
  }

  /** Gone without a word. */
  close(): void {
    this.stream.destroy();
  }
}

function succeeded(reply: NbdReply): NbdReply {
  if (reply.error !== 0) throw new NbdError(reply.error, reply.message);
  return reply;
}
