/**
 * blkdebug: injects errors, delays and limits, to test what is above it. Schema and child rules on
 * main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsBlkdebug; QEMU docs/devel/testing/blkdebug.rst
 */
import { O_RDONLY } from "../../../abi/linux.ts";
import { blockPermission } from "../../../qapi/block.ts";
import {
  arrayOf,
  bool,
  doc,
  enumeration,
  int,
  int32,
  object,
  optional,
  str,
} from "../../../qapi/scalars.ts";
import { strerror } from "../../../runtime/errno.ts";
import type { Linux } from "../../../runtime/linux.ts";
import { OutportError } from "../../../util/error.ts";
import type { BlockDriver, OpenContext, Permissions } from "../../driver.ts";
import {
  ALIGNMENT_MAX,
  type BlockLimits,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "../../node.ts";
import { parseConfig } from "./config.ts";
import { BlkdebugNode, type ZeroLimits } from "./node.ts";
import {
  type BlkdebugOptions,
  EVENTS,
  IO_TYPES,
  type PermissionName,
  Rules,
  type RulesState,
} from "./rules.ts";

const PERMISSIONS: Readonly<Record<PermissionName, number>> = {
  "consistent-read": PERM_CONSISTENT_READ,
  write: PERM_WRITE,
  "write-unchanged": PERM_WRITE_UNCHANGED,
  resize: PERM_RESIZE,
};

const event = enumeration("BlkdebugEvent", EVENTS);
const members = {
  config: optional(str, "File with rules"),
  align: optional(int, "Request alignment in bytes, a power of two (default: the image's)"),
  "max-transfer": optional(int32, "Longest read or write in bytes"),
  "opt-write-zero": optional(int32, "Shorter zero requests are written as data"),
  "max-write-zero": optional(int32, "Longest zero request in bytes"),
  "opt-discard": optional(int32, "Shorter discards are ignored"),
  "max-discard": optional(int32, "Longest discard in bytes"),
  "inject-error": optional(
    arrayOf(
      object("BlkdebugInjectErrorOptions", {
        event: doc(event, "Arms the error"),
        state: optional(int, "Only in this state"),
        iotype: optional(
          enumeration("BlkdebugIOType", IO_TYPES),
          "Requests that fail (default: all but block-status)",
        ),
        errno: optional(int, "Error number; 0 only delays (default: 5, EIO)"),
        "delay-ns": optional(int, "Delay of the request in nanoseconds (default: 0)"),
        sector: optional(int, "Only requests for this sector"),
        once: optional(bool, "Disarmed for good after one request (default: false)"),
        immediately: optional(bool, "Fail before the request could start (default: false)"),
      }),
    ),
    "Errors to inject",
  ),
  "set-state": optional(
    arrayOf(
      object("BlkdebugSetStateOptions", {
        event: doc(event, "Changes the state"),
        state: optional(int, "Only in this state"),
        new_state: doc(int, "The state that follows; the first one is 1"),
      }),
    ),
    "Changes of the state",
  ),
  "take-child-perms": optional(arrayOf(blockPermission), "Permissions to take on the image"),
  "unshare-child-perms": optional(arrayOf(blockPermission), "Permissions to forbid to others"),
};

export const blkdebug: BlockDriver = {
  name: "blkdebug",
  members,
  children: [{ role: "image", optional: false }],
  filtered: "image",
  isProtocol: true,
  reopenable: [],
  exactFilename(options, filenameOf) {
    const { config = "", ...others } = options as BlkdebugOptions;
    const { "take-child-perms": _, "unshare-child-perms": __, ...strong } = others;
    const image = filenameOf("image");
    // A configuration file and an image are all that one name can tell.
    if (image === undefined || Object.keys(strong).length > 0) return undefined;
    return `blkdebug:${config}:${image}`;
  },
  strongOptions: Object.keys(members).filter((name) => !name.endsWith("-child-perms")),
  childPermissions(_role, of, options): Permissions {
    const { "take-child-perms": take = [], "unshare-child-perms": unshare = [] } =
      options as BlkdebugOptions;
    const bits = (names: readonly PermissionName[]) =>
      names.reduce((sum, name) => sum | PERMISSIONS[name], 0);
    return { used: of.used | bits(take), shared: of.shared & ~bits(unshare) };
  },
  async open(context) {
    const options = context.options as BlkdebugOptions;
    const file = parseConfig(await readConfig(context, options.config));
    const rules = new Rules(
      [...file.injectErrors, ...(options["inject-error"] ?? [])],
      [...file.setStates, ...(options["set-state"] ?? [])],
    );
    const { limits, zeroes } = limitsOf(options, context.children.image!.limits);
    if (context.handedOver === undefined) rules.onEvent("none");
    else rules.restore(context.handedOver as RulesState);
    return new BlkdebugNode(context, { limits, zeroes, rules });
  },
};

const CONFIG_BYTES_MAX = 64 * 1024;

/** Empty without a file. */
async function readConfig({ reactor }: OpenContext, path: string | undefined): Promise<string> {
  if (path === undefined) return "";
  const { linux, buffers, memory } = reactor;
  const at = await reactor.allocate(CONFIG_BYTES_MAX);
  try {
    const bytes = readInto(linux, path, memory.address + at);
    if (bytes < 0) {
      throw new OutportError("io", `Could not open '${path}': ${strerror(-bytes)}`);
    }
    return new TextDecoder().decode(memory.u8.slice(at, at + bytes));
  } finally {
    buffers.free(at);
  }
}

/** Returns how many bytes, or -errno. */
function readInto(linux: Linux, path: string, address: number): number {
  const fd = linux.open(path, O_RDONLY);
  if (fd < 0) return fd;
  const bytes = linux.pread(fd, address, CONFIG_BYTES_MAX, 0);
  linux.close(fd);
  return bytes;
}

/** QEMU keeps these in int. */
const INT_MAX = 2 ** 31 - 1;

function limitsOf(
  options: BlkdebugOptions,
  image: BlockLimits,
): { limits: BlockLimits; zeroes: ZeroLimits } {
  const given = options.align ?? 0;
  checkRange("align", given);
  const isPowerOfTwo = 2 ** Math.round(Math.log2(given)) === given;
  // QSD differs: it takes up to 1 GiB.
  if (given > 0 && (given > ALIGNMENT_MAX || !isPowerOfTwo)) throw unmet("align", given);
  const align = Math.max(given, image.requestAlignment);
  const aligned = (name: keyof BlkdebugOptions, to: number): number => {
    const value = (options[name] ?? 0) as number;
    checkRange(name, value);
    if (value > 0 && (value >= INT_MAX || value % to !== 0)) throw unmet(name, value);
    return value;
  };
  const transferMax = aligned("max-transfer", align);
  const optWriteZero = aligned("opt-write-zero", align);
  const maxWriteZero = aligned("max-write-zero", Math.max(optWriteZero, align));
  const optDiscard = aligned("opt-discard", align);
  const maxDiscard = aligned("max-discard", Math.max(optDiscard, align));
  return {
    limits: {
      requestAlignment: align,
      memoryAlignment: image.memoryAlignment,
      transferBytesMax: Math.min(transferMax || INT_MAX, image.transferBytesMax),
      discardAlignment: Math.max(optDiscard, align, image.discardAlignment),
    },
    zeroes: {
      writeZeroesMin: Math.max(optWriteZero, align),
      writeZeroesMax: maxWriteZero || Number.MAX_SAFE_INTEGER,
      discardMax: maxDiscard || Number.MAX_SAFE_INTEGER,
    },
  };
}

function checkRange(name: string, value: number): void {
  if (value >= 0) return;
  throw new OutportError("invalid", `Value '${value}' is out of range for parameter '${name}'`);
}

function unmet(name: string, value: number): OutportError {
  return new OutportError("invalid", `Cannot meet constraints with ${name} ${value}`);
}
