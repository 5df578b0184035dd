/**
 * BlockdevOptions: the members that every driver has, their defaults, what an inline child takes
 * over from its parent, and the plan of nodes that one blockdev-add makes. Thread: main.
 * Spec: qapi/block-core.json BlockdevOptions; QEMU block.c bdrv_inherited_options()
 */
import type { CommonNodeOptions } from "../iothread/messages.ts";
import { detectZeroesOptions } from "../qapi/block.ts";
import { bool, enumeration, object, optional, str } from "../qapi/scalars.ts";
import type { ObjectMembers } from "../qapi/types.ts";
import { assert, OutportError } from "../util/error.ts";
import type { BlockDriver } from "./driver.ts";

type Wire = Readonly<Record<string, unknown>>;

/** Members of BlockdevOptions that every driver has, but `driver` itself. */
export const blockdevCommonMembers = {
  "node-name": optional(str, "Name of the node; required for the root of the definition"),
  discard: optional(
    enumeration("BlockdevDiscardOptions", ["ignore", "unmap"]),
    "What to do with discard requests (default: ignore)",
  ),
  cache: optional(
    object("BlockdevCacheOptions", {
      direct: optional(bool, "Bypass the host's page cache, O_DIRECT (default: false)"),
      "no-flush": optional(bool, "Ignore flush requests (default: false)"),
    }),
    "Cache options",
  ),
  active: optional(bool, "Whether the node may be used at once (default: true)"),
  "read-only": optional(bool, "Open for reading only (default: false)"),
  "auto-read-only": optional(
    bool,
    "Open for reading only when writing is not possible or not needed (default: false)",
  ),
  "force-share": optional(bool, "Take no image locks that shut others out (default: false)"),
  "detect-zeroes": optional(
    detectZeroesOptions,
    "Turn written zeroes into efficient zero requests (default: off)",
  ),
} satisfies ObjectMembers;

/** A node to open, its children first. */
export interface NodePlan {
  /** Undefined for an inline child that takes a generated name. */
  readonly nodeName: string | undefined;
  readonly driver: BlockDriver;
  readonly common: CommonNodeOptions;
  /** The driver's own members, without children. */
  readonly options: Wire;
  /** What was given for this node itself, but children. */
  readonly explicit: Wire;
  readonly active: boolean;
  readonly children: readonly ChildPlan[];
  /** Roles of children that there are to be none of, whatever the image says. */
  readonly absent: readonly string[];
}

/** By name of an existing node. */
export interface ChildReference {
  readonly role: string;
  readonly reference: string;
}

export type ChildPlan =
  | { readonly role: string; readonly plan: NodePlan; readonly isImplied?: boolean }
  | ChildReference;

/** `options` is checked against the schema of its driver. */
export function planNode(
  drivers: ReadonlyMap<string, BlockDriver>,
  options: Wire,
  parent: { readonly common: CommonNodeOptions; readonly active: boolean } | null = null,
): NodePlan {
  const driver = drivers.get(options.driver as string);
  if (driver === undefined) {
    throw new OutportError("invalid", `Unknown driver '${options.driver}'`);
  }
  const common = commonOptions(options, parent?.common ?? null);
  const active = (options.active as boolean | undefined) ?? parent?.active ?? true;
  const children: ChildPlan[] = [];
  const absent = driver.children.filter(({ role }) => options[role] === null);
  for (const { role, optional } of driver.children) {
    const child = options[role];
    if (child === undefined || child === null) {
      assert(optional, "the schema asks for children that are not optional");
    } else if (typeof child === "string") {
      children.push({ role, reference: child });
    } else {
      const handed = { common: inheritedOptions(common, role), active };
      children.push({ role, plan: planNode(drivers, child as Wire, handed) });
    }
  }
  return {
    nodeName: options["node-name"] as string | undefined,
    driver,
    common,
    options: ownOptions(driver, options),
    explicit: explicitOptions(driver, options),
    active,
    children,
    absent: absent.map(({ role }) => role),
  };
}

/** What a node hands down to a child that is defined inside it. */
export function inheritedOptions(common: CommonNodeOptions, role: string): CommonNodeOptions {
  // What lies behind an image is not to be changed.
  return role === "backing" ? { ...common, readOnly: true, autoReadOnly: false } : common;
}

/** The driver's own members, without children. */
export function ownOptions(driver: BlockDriver, options: Wire): Wire {
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given.filter(([name]) => Object.hasOwn(driver.members, name)));
}

/** All that is no child of the driver's. */
export function explicitOptions(driver: BlockDriver, options: Wire): Wire {
  const isChild = (name: string): boolean => driver.children.some(({ role }) => role === name);
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given.filter(([name]) => !isChild(name)));
}

/** What the node itself is given, over what an inline child takes from its parent. */
export function commonOptions(options: Wire, parent: CommonNodeOptions | null): CommonNodeOptions {
  const cache = (options.cache ?? {}) as { direct?: boolean; "no-flush"?: boolean };
  const flag = (value: unknown, inherited: boolean | undefined): boolean =>
    (value as boolean | undefined) ?? inherited ?? false;
  return {
    readOnly: flag(options["read-only"], parent?.readOnly),
    autoReadOnly: flag(options["auto-read-only"], parent?.autoReadOnly),
    forceShare: flag(options["force-share"], parent?.forceShare),
    cacheDirect: flag(cache.direct, parent?.cacheDirect),
    cacheNoFlush: flag(cache["no-flush"], parent?.cacheNoFlush),
    // A format driver hands down only the discards that its own node lets through.
    discardUnmap: options.discard === undefined ? parent !== null : options.discard === "unmap",
    detectZeroes: (options["detect-zeroes"] ?? "off") as CommonNodeOptions["detectZeroes"],
  };
}

/** Combinations that no driver takes; checked after the children are open, before the name. */
export function checkCommonOptions(common: CommonNodeOptions): void {
  if (common.forceShare && !common.readOnly) {
    throw new OutportError("invalid", "force-share=on can only be used with read-only images");
  }
  checkDetectZeroes(common);
}

export function checkDetectZeroes(common: CommonNodeOptions): void {
  if (common.detectZeroes === "unmap" && !common.discardUnmap) {
    const text =
      "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";
    throw new OutportError("invalid", text);
  }
}

/** Longest node name. */
const NODE_NAME_LENGTH_MAX = 31;

/** The grammar of names given by users. Spec: QEMU util/id.c id_wellformed() */
export function isWellformedId(id: string): boolean {
  return /^[A-Za-z][A-Za-z0-9._-]*$/.test(id);
}

/** `isTaken` tells of nodes that exist. */
export function checkNodeName(name: string, isTaken: (name: string) => boolean): void {
  if (!isWellformedId(name)) throw new OutportError("invalid", `Invalid node-name: '${name}'`);
  if (isTaken(name)) {
    throw new OutportError("in-use", `Duplicate nodes with node-name='${name}'`);
  }
  if (name.length > NODE_NAME_LENGTH_MAX) throw new OutportError("invalid", "Node name too long");
}
