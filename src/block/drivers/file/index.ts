/**
 * file and host_device: what lies at a path of the host. Schema on main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsFile
 */
import { bool, doc, enumeration, int, optional, str } from "../../../qapi/scalars.ts";
import { OutportError } from "../../../util/error.ts";
import type { BlockDriver, OpenContext } from "../../driver.ts";
import { canLock } from "../../locks.ts";
import { fileLimits } from "./alignment.ts";
import { fileCreation } from "./create.ts";
import { deviceLimits } from "./device-limits.ts";
import {
  type FileDriver,
  hostFileBytes,
  isBlockDevice,
  logicalBlockBytes,
  openHostFile,
  reopenHostFile,
} from "./host-file.ts";
import { type FileHandover, FileNode } from "./node.ts";

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
      filename: doc(str, "Path of the file"),
      "pr-manager": optional(str, "Id of the object that keeps persistent reservations"),
      locking: optional(
        enumeration("OnOffAuto", ["auto", "on", "off"]),
        "Lock the image against other processes (default: auto, where the host can)",
      ),
      // All of them mean the engine of the iothread, which chose the best that the host has.
      aio: optional(
        enumeration("BlockdevAioOptions", ["threads", "native", "io_uring"]),
        "How requests reach the host (default: threads)",
      ),
      "aio-max-batch": optional(int, "Requests per batch, 0 for the default (default: 0)"),
      "drop-cache": optional(bool, "Drop the host's page cache on migration (default: true)"),
      // Of tests of live migration.
      "x-check-cache-dropped": optional(bool, "Check that it was dropped (default: false)", [
        "unstable",
      ]),
    },
    children: [],
    features: ["dynamic-auto-read-only"],
    strongOptions: ["filename"],
    isProtocol: true,
    reopenable: ["drop-cache", "x-check-cache-dropped"],
    bind: ({ servedDevices }) => servedDevices(),
    open: (context) => openFile(name, context),
  };
}

export const file: BlockDriver = { ...fileDriver("file"), creation: fileCreation };
export const hostDevice = fileDriver("host_device");

async function openFile(driver: FileDriver, context: OpenContext): Promise<FileNode> {
  const options = context.options as unknown as FileOptions;
  const { filename } = options;
  const { reactor } = context;
  const { linux } = reactor;
  checkOptions(driver, options);
  const writable = !context.readOnly && !context.autoReadOnly;
  const mode = { writable, direct: context.cacheDirect };
  const handedOver = context.handedOver as FileHandover | undefined;
  const hostFile =
    handedOver === undefined
      ? openHostFile(linux, driver, filename, { ...mode, served: context.bound as number[] })
      : reopenHostFile(linux, handedOver.fd, filename, mode);
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
      limits: await fileLimits(context, hostFile, deviceBlock),
      hostLimits: deviceBlock > 0 ? await deviceLimits(reactor, hostFile, mode.direct) : {},
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
