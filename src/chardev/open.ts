/**
 * Opens the device that a ChardevBackend describes. Thread: main.
 * Spec: qapi/char.json; QEMU chardev/char-socket.c, char-file.c, char-pipe.c, char-stdio.c
 */
import { O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } from "../abi/linux.ts";
import type { ChardevBackend } from "../qapi/chardev.ts";
import type { Files, RuntimeDriver, Stream } from "../runtime/driver.ts";
import { reasonOf } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import type { Chardev } from "./chardev.ts";
import { openLogFile } from "./log-file.ts";
import { openSocket, type SocketParts } from "./open-socket.ts";
import { nullStream, StreamChardev } from "./streams.ts";

export interface ChardevOpenParts extends SocketParts {
  readonly driver: Pick<RuntimeDriver, "sockets" | "files">;
  /** Standard input and output, which one device has. Throws an OutportError the second time. */
  readonly takeStdio: () => Stream;
}

type Branch<Type> = Extract<ChardevBackend, { type: Type }>["data"];

/** Throws an OutportError in QSD's words. */
export async function openChardev(
  id: string,
  backend: ChardevBackend,
  parts: ChardevOpenParts,
): Promise<Chardev> {
  const { logfile, logappend = false, logtimestamp = false } = backend.data;
  if (logtimestamp) throw new OutportError("unsupported", "'logtimestamp' is not supported");
  const { files } = parts.driver;
  const log = logfile === undefined ? undefined : openLogFile(files, logfile, logappend);
  try {
    const chardev = await openBackend(id, backend, parts);
    if (log !== undefined) chardev.logTo(log);
    return chardev;
  } catch (error) {
    log?.end();
    throw error;
  }
}

async function openBackend(
  id: string,
  { type, data }: ChardevBackend,
  parts: ChardevOpenParts,
): Promise<Chardev> {
  switch (type) {
    case "null":
      return new StreamChardev(id, type, nullStream());
    case "stdio":
      return new StreamChardev(id, type, parts.takeStdio());
    case "file":
      return openFile(id, data as Branch<"file">, parts);
    case "pipe":
      return openPipe(id, (data as Branch<"pipe">).device, parts);
    case "socket":
      return openSocket(id, data as Branch<"socket">, parts);
  }
}

function openFile(id: string, data: Branch<"file">, { driver }: ChardevOpenParts): Chardev {
  const { files } = driver;
  const mode = data.append === true ? O_APPEND : O_TRUNC;
  const outputFd = openFd(files, data.out, O_WRONLY | O_CREAT | mode);
  let inputFd: number | undefined;
  try {
    if (data.in !== undefined) inputFd = openFd(files, data.in, O_RDONLY);
  } catch (error) {
    files.close(outputFd);
    throw error;
  }
  return new StreamChardev(id, "file", files.stream(inputFd, outputFd));
}

/** Two FIFOs with these endings, or one for both ways. */
function openPipe(id: string, device: string, { driver }: ChardevOpenParts): Chardev {
  const { files } = driver;
  const fds: number[] = [];
  try {
    for (const path of [`${device}.in`, `${device}.out`]) fds.push(openFd(files, path, O_RDWR));
  } catch {
    for (const fd of fds.splice(0)) files.close(fd);
  }
  const [inputFd, outputFd] = fds;
  if (outputFd !== undefined) {
    return new StreamChardev(id, "pipe", files.stream(inputFd, outputFd));
  }
  const fd = openFd(files, device, O_RDWR);
  return new StreamChardev(id, "pipe", files.stream(fd, fd));
}

function openFd(files: Files, path: string, flags: number): number {
  try {
    return files.open(path, flags);
  } catch (error) {
    throw new OutportError("io", `Could not open '${path}': ${reasonOf(error)}`, { cause: error });
  }
}
