/**
 * file and host_device: what lies at a path of the host. Schema on main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsFile
 */
import { bool, enumeration, int, optional, str } from "../../../qapi/scalars.ts";
import { OutportError } from "../../../util/error.ts";
import type { BlockDriver, OpenContext } from "../../driver.ts";
import { canLock } from "../../locks.ts";
import type { BlockLimits } from "../../node.ts";
import { type Alignment, BUFFERED, directAlignment } from "./alignment.ts";
import {
  type FileDriver,
  type HostFile,
  hostFileBytes,
  isBlockDevice,
  logicalBlockBytes,
  openHostFile,
} from "./host-file.ts";
import { FileNode } from "./node.ts";

/** What one system call moves at most, in whole pages. */
const TRANSFER_BYTES_MAX = 2 ** 31 - 4096;

interface FileOptions {
  readonly filename: string;
  readonly aio?: "threads" | "native" | "io_uring";
  readonly locking?: "auto" | "on" | "off";
  readonly "pr-manager"?: string;
}

function fileDriver(name: FileDriver): BlockDriver {
  return {
    name,
    members: {
      filename: str,
      "pr-manager": optional(str),
      locking: optional(enumeration("OnOffAuto", ["auto", "on", "off"])),
      // All of them mean the engine of the iothread, which chose the best that the host has.
      aio: optional(enumeration("BlockdevAioOptions", ["threads", "native", "io_uring"])),
      "aio-max-batch": optional(int),
      // Of live migration, which a storage daemon has no part in.
      "drop-cache": optional(bool),
      "x-check-cache-dropped": optional(bool),
    },
    children: [],
    open: (context) => openFile(name, context),
  };
}

export const file = fileDriver("file");
export const hostDevice = fileDriver("host_device");

async function openFile(driver: FileDriver, context: OpenContext): Promise<FileNode> {
  const options = context.options as unknown as FileOptions;
  const { filename } = options;
  const { linux } = context.reactor;
  checkOptions(driver, options);
  const writable = !context.readOnly && !context.autoReadOnly;
  const mode = { writable, direct: context.cacheDirect };
  const hostFile = openHostFile(linux, driver, filename, mode);
  const { fd, status } = hostFile;
  try {
    if (options.aio === "native" && !context.cacheDirect) {
      throw new OutportError(
        "invalid",
        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
      );
    }
    const bytes = hostFileBytes(linux, fd);
    const deviceBlock = isBlockDevice(status) ? logicalBlockBytes(linux, fd) : 0;
    return new FileNode(context, {
      driver,
      filename,
      fd,
      writable,
      bytes,
      limits: await limitsOf(context, hostFile, deviceBlock),
      deviceBlock,
      locking: options.locking === "on" || (options.locking !== "off" && canLock(linux, fd)),
    });
  } catch (error) {
    linux.close(fd);
    throw error;
  }
}

function checkOptions(driver: FileDriver, options: FileOptions): void {
  if (options.filename === "") {
    throw new OutportError("invalid", `The '${driver}' block driver requires a file name`);
  }
  const prManager = options["pr-manager"];
  if (prManager !== undefined) {
    const message = `No persistent reservation manager with id '${prManager}'`;
    throw new OutportError("not-found", message);
  }
}

async function limitsOf(
  context: OpenContext,
  { fd, status }: HostFile,
  deviceBlock: number,
): Promise<BlockLimits> {
  const alignment: Alignment = context.cacheDirect
    ? await directAlignment(context.reactor, fd, status)
    : BUFFERED;
  return {
    requestAlignment: alignment.request,
    memoryAlignment: alignment.memory,
    transferBytesMax: TRANSFER_BYTES_MAX,
    discardAlignment: Math.max(alignment.request, deviceBlock, 1),
  };
}
