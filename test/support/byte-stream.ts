/** A socket that tests read from by exact counts. Runs on every runtime: node:net only. */
import net from "node:net";

/** Where a server listens. */
export type Address = { readonly path: string } | { readonly host: string; readonly port: number };

/** The peer closed before the bytes asked for had come. */
class EndOfStream extends Error {
  constructor(wanted: number, got: number) {
    super(`the peer closed after ${got} of ${wanted} bytes`);
  }
}

export class ByteStream {
  /** The peer has closed, in order or not. */
  ended = false;
  #socket: net.Socket;
  #chunks: Uint8Array[] = [];
  #bytes = 0;
  #wake: (() => void) | null = null;
  #closed: Promise<void>;

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on("data", (chunk: Uint8Array) => {
      this.#chunks.push(new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength));
      this.#bytes += chunk.byteLength;
      this.#notify();
    });
    this.#closed = new Promise((resolve) => socket.once("close", () => resolve()));
    for (const event of ["end", "error", "close"]) {
      socket.on(event, () => {
        this.ended = true;
        this.#notify();
      });
    }
  }

  static connect(address: Address): Promise<ByteStream> {
    return new Promise((resolve, reject) => {
      const socket = net.connect({ ...address, noDelay: true } as net.NetConnectOpts);
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new ByteStream(socket));
      });
    });
  }

  /** Resolves when the bytes are handed to the kernel; also when the peer is gone. */
  send(...parts: Uint8Array[]): Promise<void> {
    const pending = parts.map(
      (part) => new Promise<void>((resolve) => this.#socket.write(part, () => resolve())),
    );
    return Promise.race([Promise.all(pending).then(() => {}), this.#closed]);
  }

  /** Exactly `bytes`, or throws EndOfStream. One reader at a time. */
  async read(bytes: number): Promise<Uint8Array> {
    while (this.#bytes < bytes) {
      if (this.ended) throw new EndOfStream(bytes, this.#bytes);
      await this.#more();
    }
    return this.#take(bytes);
  }

  /** Everything until the peer closes. */
  async readToEnd(): Promise<Uint8Array> {
    while (!this.ended) await this.#more();
    return this.#take(this.#bytes);
  }

  /** What has come within `milliseconds`, and no more is coming. */
  async readQuiet(milliseconds: number): Promise<Uint8Array> {
    for (;;) {
      const before = this.#bytes;
      await new Promise((resolve) => setTimeout(resolve, milliseconds));
      if (this.#bytes === before) return this.#take(this.#bytes);
    }
  }

  /** Stops reading, so that the kernel's buffers fill up. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  /** Tells the peer that nothing more comes; still reads. */
  end(): void {
    this.#socket.end();
  }

  /** Gone at once. */
  destroy(): void {
    this.#socket.destroy();
  }

  #notify(): void {
    this.#wake?.();
    this.#wake = null;
  }

  #more(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  #take(bytes: number): Uint8Array {
    const result = new Uint8Array(bytes);
    let at = 0;
    while (at < bytes) {
      const chunk = this.#chunks[0]!;
      const piece = chunk.subarray(0, bytes - at);
      result.set(piece, at);
      at += piece.length;
      if (piece.length === chunk.length) this.#chunks.shift();
      else this.#chunks[0] = chunk.subarray(piece.length);
    }
    this.#bytes -= bytes;
    return result;
  }
}
