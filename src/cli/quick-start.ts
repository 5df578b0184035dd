/**
 * The quick start: `outport IMAGE` serves one image over NBD on a unix socket, without that
 * anything else is said. The only place where the format of an image is guessed; so what a guess
 * could be misled to is left out, unless the format is given: writing to a raw disk, whose content
 * could be made to look like another format, and files that an image names. Thread: main.
 */
import {
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  O_NONBLOCK,
  O_RDONLY,
  PROT_READ,
  PROT_WRITE,
  S_IFBLK,
  S_IFMT,
  S_IFREG,
} from "../abi/linux.ts";
import type { BlockDriver } from "../block/driver.ts";
import { PROBE_BYTES, probeFormat } from "../block/probe.ts";
import type { Dispatcher } from "../qmp/dispatcher.ts";
import { strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { OptionError } from "./option-error.ts";

/** Of the node, of the export, and what clients ask for. */
const NAME = "disk";

/** What the command line says of it. */
export interface QuickStart {
  readonly format?: string;
  readonly readOnly?: boolean;
  /** Where the socket is to be. */
  readonly socket?: string;
}

export interface QuickStartParts {
  readonly dispatcher: Pick<Dispatcher, "execute">;
  readonly drivers: readonly BlockDriver[];
  readonly linux: Linux;
  readonly log: Log;
  /** Of the socket, where none is given. */
  readonly defaultSocket: string;
  readonly print: (text: string) => void;
}

/** Serves when it returns. Throws an OutportError. */
export async function serveImage(
  parts: QuickStartParts,
  path: string,
  { format, readOnly = false, socket = parts.defaultSocket }: QuickStart,
): Promise<void> {
  const { dispatcher, drivers, print } = parts;
  const run = (command: string, args: Record<string, unknown>): Promise<unknown> =>
    dispatcher.execute(command, args, { commandLine: true }).catch((error: unknown) => {
      throw withAdvice(error, path);
    });
  const look = lookAt(parts.linux, path);
  const isGuess = format === undefined && look !== null;
  const guess = isGuess ? guessFormat(parts, path, look.start) : undefined;
  const driver = drivers.find(({ name }) => name === (format ?? guess?.driver ?? "raw"));
  if (driver === undefined || (driver.probe === undefined && driver.name !== "raw")) {
    throw new OutportError("invalid", `Parameter 'format' does not accept value '${format}'`);
  }
  const isReadOnly = readOnly || driver.onlyReads === true || guess?.isReadOnly === true;
  const common = { "read-only": isReadOnly, discard: "unmap" };
  const file = {
    driver: look?.isDevice === true ? "host_device" : "file",
    filename: path,
    ...common,
  };
  // Should somebody have changed the image meanwhile: it was one that names no other.
  const backing = guess !== undefined && driver.namesFiles !== undefined ? { backing: null } : {};
  await run("blockdev-add", {
    driver: driver.name,
    "node-name": NAME,
    file,
    ...common,
    ...backing,
  });
  await run("nbd-server-start", { addr: { type: "unix", data: { path: socket } } });
  const names = { id: NAME, "node-name": NAME, name: NAME };
  await run("block-export-add", { type: "nbd", ...names, writable: !isReadOnly });
  print(`nbd+unix:///${NAME}?socket=${encodeURIComponent(socket).replaceAll("%2F", "/")}\n`);
}

interface Look {
  readonly isDevice: boolean;
  readonly start: Uint8Array;
}

/** The file's first bytes. Null: it is no disk, as opening it will say. */
function lookAt(linux: Linux, path: string): Look | null {
  const status = linux.stat(path);
  const type = typeof status === "number" ? 0 : status.mode & S_IFMT;
  if (type !== S_IFREG && type !== S_IFBLK) return null;
  const fd = linux.open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) throw couldNotOpen(path, fd);
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const address = linux.mmap(0, PROBE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
  try {
    const count = address < 0 ? address : linux.pread(fd, address, PROBE_BYTES, 0);
    if (count < 0) throw couldNotOpen(path, count);
    // SAFETY: the bytes are copied before they are unmapped.
    const start = new Uint8Array(linux.ffi.view(address, PROBE_BYTES)).slice(0, count);
    return { isDevice: type === S_IFBLK, start };
  } finally {
    if (address > 0) linux.munmap(address, PROBE_BYTES);
    linux.close(fd);
  }
}

interface Guess {
  readonly driver: string;
  readonly isReadOnly: boolean;
}

function guessFormat({ drivers, log }: QuickStartParts, path: string, start: Uint8Array): Guess {
  const driver = probeFormat(drivers, start);
  if (driver === undefined) {
    // QSD differs: it would take writes, but for those that make the disk look like an image.
    const hint = "Use --format raw to make it writable";
    log("warn", `'${path}' looks like a raw disk: it is served read-only`, { hint });
    return { driver: "raw", isReadOnly: true };
  }
  if (driver.namesFiles?.(start) === true) {
    const advice = `use --format ${driver.name} if that is meant to be`;
    throw new OutportError(
      "permission",
      `The image looks like ${driver.name} and names other files to open: ${advice}`,
    );
  }
  return { driver: driver.name, isReadOnly: false };
}

/** As QSD's tools advise. */
function withAdvice(error: unknown, path: string): unknown {
  if (!(error instanceof OutportError) || !/^Failed to get .* lock$/.test(error.message)) {
    return error;
  }
  const hint = `Is another process using the image [${path}]?`;
  return new OptionError(error.kind, error.message, { option: path, hint });
}

function couldNotOpen(path: string, errno: number): OutportError {
  return new OutportError("io", `Could not open '${path}': ${strerror(errno)}`);
}
