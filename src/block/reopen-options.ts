/**
 * blockdev-reopen, its options: which nodes it reopens, with what options, and whether these may
 * change. Thread: main.
 * Spec: QEMU block.c bdrv_reopen_queue_child(), bdrv_reopen_prepare()
 */
import type { CommonNodeOptions } from "../iothread/messages.ts";
import { OutportError } from "../util/error.ts";
import {
  checkCommonOptions,
  checkDetectZeroes,
  commonOptions,
  explicitOptions,
  inheritedOptions,
} from "./catalogue.ts";
import type { GraphNode } from "./graph-node.ts";

type Wire = Readonly<Record<string, unknown>>;

/** A node to reopen. */
export interface ReopenEntry {
  readonly node: GraphNode;
  /** What is given for the node itself, but children. */
  explicit: Wire;
  common: CommonNodeOptions;
  /** Children by reference: the name of a node, or null for none. */
  references: ReadonlyMap<string, string | null>;
  /** Options of children that are not the node's own, by role. */
  foreign: ReadonlyMap<string, Wire>;
}

/** Left out, they go back to their defaults. */
const RESETTABLE = [
  "node-name",
  "discard",
  "cache.direct",
  "cache.no-flush",
  "read-only",
  "auto-read-only",
  "detect-zeroes",
];

/** All that reopening nodes with these options comes to, in the order in which it is done. */
export class ReopenQueue {
  readonly #entries = new Map<GraphNode, ReopenEntry>();

  get entries(): readonly ReopenEntry[] {
    return [...this.#entries.values()];
  }

  /** A node that the user names. */
  add(node: GraphNode, given: Wire): void {
    this.#add(node, given, null, false);
  }

  /** `keep`: what is not given stays as it is. */
  #add(node: GraphNode, given: Wire, parent: CommonNodeOptions | null, keep: boolean): void {
    const known = this.#entries.get(node);
    const own = explicitOptions(node.driver, given);
    const before = known?.explicit ?? (keep ? node.explicit : {});
    const explicit = { ...before, ...own, ...mergedCache(before, own) };
    // Unlike all others, discard stays as it is where nothing is said.
    const discardUnmap = parent === null ? { discardUnmap: node.definition.discardUnmap } : {};
    const common = { ...commonOptions(explicit, parent), ...ifAbsent(explicit, discardUnmap) };
    const references = new Map(known?.references);
    const foreign = new Map(known?.foreign);
    this.#entries.set(node, { node, explicit, common, references, foreign });
    for (const { role } of node.driver.children) {
      const edge = node.children.find((one) => one.role === role);
      const value = given[role];
      const handed = inheritedOptions(common, role);
      const isOwn = edge?.child.inheritsFrom === node;
      if (value === null || typeof value === "string") {
        references.set(role, value);
        if (isOwn && value === edge.child.nodeName) this.#add(edge.child, {}, handed, true);
      } else if (isOwn) {
        if (value === undefined && !keep) this.#checkMayMiss(node, role);
        this.#add(edge.child, (value ?? {}) as Wire, handed, keep);
      } else if (value !== undefined) {
        foreign.set(role, value as Wire);
      } else if (edge !== undefined && !keep) {
        this.#checkMayMiss(node, role);
      }
    }
  }

  #checkMayMiss({ driver, nodeName }: GraphNode, role: string): void {
    const rule = driver.children.find((one) => one.role === role);
    // Only where the schema doesn't say it already.
    if (rule?.optional === true) throw refusal(`${role} is missing for '${nodeName}'`);
  }
}

function mergedCache(before: Wire, own: Wire): Wire {
  const cache = { ...(before.cache as Wire), ...(own.cache as Wire) };
  return Object.keys(cache).length === 0 ? {} : { cache };
}

function ifAbsent(explicit: Wire, kept: Partial<CommonNodeOptions>): Partial<CommonNodeOptions> {
  return explicit.discard === undefined ? kept : {};
}

/** Before the children are looked at. Throws OutportError in QSD's words. */
export function checkReset({ node, explicit, common }: ReopenEntry): void {
  const { driver, definition } = node;
  checkDetectZeroes(common);
  if (driver.reopenable === undefined) {
    throw refusal(
      `Block format '${driver.name}' used by node '${node.nodeName}' ` +
        "does not support reopening files",
    );
  }
  const after = flatten(explicit);
  for (const name of flatten(node.explicit).keys()) {
    if (after.has(name) || RESETTABLE.includes(name) || driver.reopenable.includes(name)) continue;
    throw refusal(`Option '${name}' cannot be reset to its default value`);
  }
  if (definition.forceShare && !common.forceShare) {
    throw refusal("Option 'force-share' cannot be reset to its default value");
  }
}

/** After the children were looked at. Throws OutportError in QSD's words. */
export function checkUnchanged({ node, explicit, common, foreign }: ReopenEntry): void {
  for (const [role, options] of foreign) {
    const [first] = flatten(options).keys();
    throw refusal(`Cannot change the option '${role}.${first}'`);
  }
  const before = flatten(node.explicit);
  // QSD differs: it forgets the names of inline children, and does not know force-share again.
  before.set("node-name", node.nodeName);
  // QSD differs: it takes the node for active or inactive then, and keeps or lacks its locks.
  before.set("active", node.active);
  const { reopenable = [], changeable: own = [] } = node.driver;
  const changeable = [...reopenable, ...own, ...RESETTABLE.slice(1)];
  for (const [name, value] of flatten(explicit)) {
    if (changeable.includes(name) || before.get(name) === value) continue;
    throw refusal(`Cannot change the option '${name}'`);
  }
  checkCommonOptions(common);
}

/** Nested members by their dotted names. */
function flatten(options: Wire): Map<string, unknown> {
  const flat = new Map<string, unknown>();
  for (const [name, value] of Object.entries(options)) {
    if (typeof value === "object" && value !== null) {
      for (const [below, inner] of flatten(value as Wire)) flat.set(`${name}.${below}`, inner);
    } else {
      flat.set(name, value);
    }
  }
  return flat;
}

function refusal(message: string): OutportError {
  return new OutportError("invalid", message);
}
