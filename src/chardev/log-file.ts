/**
 * The copy of a device's output that goes to its log file, as well as that goes. Thread: main.
 * Spec: qapi/char.json ChardevCommon; QEMU chardev/char.c qemu_chr_write_log()
 */
import { O_APPEND, O_CREAT, O_TRUNC, O_WRONLY } from "../abi/linux.ts";
import type { Files, Stream } from "../runtime/driver.ts";
import { reasonOf } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";

/** What a file that is too slow may have pending; more is left out. */
const PENDING_BYTES_MAX = 4 * 1024 * 1024;

/** Throws an OutportError. */
export function openLogFile(files: Files, path: string, append: boolean): Stream {
  try {
    const mode = append ? O_APPEND : O_TRUNC;
    return files.stream(undefined, files.open(path, O_WRONLY | O_CREAT | mode));
  } catch (error) {
    const message = `Could not create '${path}': ${reasonOf(error)}`;
    throw new OutportError("io", message, { cause: error });
  }
}

/** `stream`, whose output goes to `log` as well. */
export function withLog(stream: Stream, log: Stream): Stream {
  return {
    get onData() {
      return stream.onData;
    },
    set onData(receiver) {
      stream.onData = receiver;
    },
    get onEnd() {
      return stream.onEnd;
    },
    set onEnd(receiver) {
      stream.onEnd = receiver;
    },
    get onClose() {
      return stream.onClose;
    },
    set onClose(receiver) {
      stream.onClose = receiver;
    },
    write(bytes) {
      stream.write(bytes);
      if (log.pendingBytes + bytes.length <= PENDING_BYTES_MAX) log.write(bytes);
    },
    get pendingBytes() {
      return stream.pendingBytes;
    },
    get names() {
      return stream.names;
    },
    pause: () => stream.pause(),
    resume: () => stream.resume(),
    end: () => stream.end(),
    destroy: () => stream.destroy(),
  };
}
