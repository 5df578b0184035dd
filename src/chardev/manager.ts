/**
 * The character devices by id. Thread: main.
 * Spec: qapi/char.json; QEMU chardev/char.c
 */
import { isWellformedId } from "../block/catalogue.ts";
import type { ChardevBackend, ChardevInfo } from "../qapi/chardev.ts";
import type { RuntimeDriver, Stream } from "../runtime/driver.ts";
import { OutportError } from "../util/error.ts";
import type { Chardev } from "./chardev.ts";
import { type ChardevOpenParts, openChardev } from "./open.ts";

export interface ChardevsParts extends Omit<ChardevOpenParts, "fdNumbers" | "takeStdio"> {
  readonly driver: Pick<RuntimeDriver, "sockets" | "files" | "process">;
  /** The process is going to leave its standard streams. */
  readonly background: boolean;
}

/** Where a device comes from; words differ. */
export type ChardevOrigin = "command-line" | "monitor";

export class Chardevs {
  #parts: ChardevsParts;
  #chardevs = new Map<string, Chardev>();
  #stdioTaken = false;
  #started = false;

  constructor(parts: ChardevsParts) {
    this.#parts = parts;
  }

  /** Resolves when it is open, with `wait` when the first client is there. Throws OutportError. */
  async add(id: string, backend: ChardevBackend, origin: ChardevOrigin): Promise<void> {
    if (origin === "monitor" && this.#chardevs.has(id)) {
      throw new OutportError("in-use", `Chardev with id '${id}' already exists`);
    }
    if (!isWellformedId(id) && origin === "command-line") {
      throw new OutportError("invalid", "Parameter 'id' expects an identifier");
    }
    const chardev = await this.#open(id, backend, origin);
    if (this.#chardevs.has(id)) {
      chardev.close();
      const message = `attempt to add duplicate property '${id}' to object (type 'container')`;
      throw new OutportError("in-use", message);
    }
    this.#keep(chardev);
    await chardev.ready();
  }

  /** Throws an OutportError. */
  get(id: string): Chardev {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new OutportError("not-found", `chardev "${id}" not found`);
    return chardev;
  }

  /** Throws an OutportError. */
  remove(id: string): void {
    const chardev = this.#known(id);
    if (chardev.busy) throw new OutportError("in-use", `Chardev '${id}' is busy`);
    this.#forget(chardev);
  }

  /** Puts another device in the place of one that nobody uses. Throws an OutportError. */
  async change(id: string, backend: ChardevBackend): Promise<void> {
    const old = this.#chardevs.get(id);
    if (old === undefined) {
      throw new OutportError("not-found", `Chardev '${id}' does not exist`);
    }
    if (old.busy) {
      throw new OutportError("in-use", "Chardev user does not support chardev hotswap");
    }
    const chardev = await this.#open(id, backend, "monitor");
    this.#forget(old);
    this.#keep(chardev);
    await chardev.ready();
  }

  /** A break means nothing to these devices. Throws an OutportError. */
  sendBreak(id: string): void {
    this.#known(id);
  }

  /** Oldest first. */
  list(): Iterable<Chardev> {
    return this.#chardevs.values();
  }

  query(): ChardevInfo[] {
    return [...this.#chardevs.values()].map(({ id, filename, busy }) => ({
      "frontend-open": busy,
      filename,
      label: id,
    }));
  }

  /** All options are done: from here on input flows. */
  start(): void {
    this.#started = true;
    for (const chardev of this.#chardevs.values()) chardev.start();
  }

  /** At shutdown. */
  closeAll(): void {
    for (const chardev of this.#chardevs.values()) chardev.close();
  }

  #known(id: string): Chardev {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new OutportError("not-found", `Chardev '${id}' not found`);
    return chardev;
  }

  #keep(chardev: Chardev): void {
    this.#chardevs.set(chardev.id, chardev);
    if (this.#started) chardev.start();
  }

  #forget(chardev: Chardev): void {
    this.#chardevs.delete(chardev.id);
    chardev.close();
  }

  async #open(id: string, backend: ChardevBackend, origin: ChardevOrigin): Promise<Chardev> {
    const fdNumbers = origin === "command-line";
    const takeStdio = () => this.#takeStdio();
    try {
      return await openChardev(id, backend, { ...this.#parts, fdNumbers, takeStdio });
    } catch (error) {
      if (origin === "command-line" || !(error instanceof OutportError)) throw error;
      const message = `Failed to add chardev '${id}': ${error.message}`;
      throw new OutportError(error.kind, message, { cause: error });
    }
  }

  /** The driver gives it once: what was given up is closed. */
  #takeStdio(): Stream {
    if (this.#parts.background) {
      throw new OutportError("invalid", "cannot use stdio with -daemonize");
    }
    if (this.#stdioTaken) {
      throw new OutportError("in-use", "cannot use stdio by multiple character devices");
    }
    this.#stdioTaken = true;
    return this.#parts.driver.process.stdin();
  }
}
