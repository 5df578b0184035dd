/**
 * Data that lies encrypted in a file: what is read is decrypted where it was read to, what is
 * written is encrypted into memory of our own. Thread: iothread; everything async may suspend.
 */
import { SECTOR_BYTES, type XtsCipher } from "../crypto/xts.ts";
import type { Reactor } from "../io/reactor.ts";
import { assert } from "../util/error.ts";
import { Places } from "./places.ts";

/** At a time: others want the thread, too. */
const PART_BYTES = 256 * 1024;
/** Of at most PART_BYTES each. */
const WRITE_PLACES = 16;

/** Where the encrypted bytes are. All results are 0 or -errno. */
export interface EncryptedFile {
  /** To native memory at `address`. */
  read(offset: number, bytes: number, address: number): Promise<number>;
  write(offset: number, bytes: number, address: number): Promise<number>;
}

/** Offsets and lengths are whole sectors; addresses are in the reactor's memory. */
export class EncryptedData implements EncryptedFile {
  #reactor: Reactor;
  #cipher: XtsCipher;
  #file: EncryptedFile;
  #start: number;
  #places: Places;

  /** `start`: of the data in the file; sectors count from there. */
  constructor(reactor: Reactor, cipher: XtsCipher, file: EncryptedFile, start = 0) {
    this.#reactor = reactor;
    this.#cipher = cipher;
    this.#file = file;
    this.#start = start;
    this.#places = new Places(reactor, WRITE_PLACES);
  }

  async read(offset: number, bytes: number, address: number): Promise<number> {
    const { memory } = this.#reactor;
    for (let done = 0; done < bytes; done += PART_BYTES) {
      const part = Math.min(PART_BYTES, bytes - done);
      const result = await this.#file.read(this.#start + offset + done, part, address + done);
      if (result < 0) return result;
      const at = address + done - memory.address;
      const data = memory.u8.subarray(at, at + part);
      assert(data.length === part, "data is decrypted where it is");
      this.#cipher.decrypt(data, data, (offset + done) / SECTOR_BYTES);
    }
    return 0;
  }

  async write(offset: number, bytes: number, address: number): Promise<number> {
    for (let done = 0; done < bytes; done += PART_BYTES) {
      const part = Math.min(PART_BYTES, bytes - done);
      const result = await this.#writePart(offset + done, part, address + done);
      if (result < 0) return result;
    }
    return 0;
  }

  #writePart(offset: number, bytes: number, address: number): Promise<number> {
    const { memory } = this.#reactor;
    return this.#places.withBuffer(bytes, (at) => {
      const from = address - memory.address;
      const plain = memory.u8.subarray(from, from + bytes);
      this.#cipher.encrypt(plain, memory.u8.subarray(at, at + bytes), offset / SECTOR_BYTES);
      return this.#file.write(this.#start + offset, bytes, memory.address + at);
    });
  }
}
