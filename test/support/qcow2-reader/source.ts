/** Where the reader of qcow2 images takes its bytes from. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

export interface Source {
  readonly bytes: number;
  /** Exactly `bytes` bytes: zeroes behind the end. */
  read(offset: number, bytes: number): Uint8Array;
}

export function memorySource(content: Uint8Array): Source {
  return {
    bytes: content.length,
    read(offset, bytes) {
      const part = content.subarray(Math.min(offset, content.length), offset + bytes);
      if (part.length === bytes) return part;
      const padded = new Uint8Array(bytes);
      padded.set(part);
      return padded;
    },
  };
}

/** A file, open until close(). */
export class FileSource implements Source {
  readonly bytes: number;
  #fd: number;

  constructor(path: string) {
    this.#fd = openSync(path, "r");
    this.bytes = fstatSync(this.#fd).size;
  }

  read(offset: number, bytes: number): Uint8Array {
    const target = new Uint8Array(bytes);
    let done = 0;
    while (done < bytes) {
      const count = readSync(this.#fd, target, done, bytes - done, offset + done);
      if (count === 0) break;
      done += count;
    }
    return target;
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** An unsigned 64-bit number that must be exact as a JavaScript number. */
export function u64(view: DataView, at: number): number {
  const high = view.getUint32(at);
  if (high >= 2 ** 21) throw new Error(`a number at ${at} is beyond 2^53`);
  return high * 2 ** 32 + view.getUint32(at + 4);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
