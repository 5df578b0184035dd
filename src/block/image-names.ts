/**
 * How images are named: by a file name where that alone opens the same, else by all their options
 * as "json:...". Thread: main.
 * Spec: QEMU block.c bdrv_refresh_filename(), qobject/qdict.c qdict_first(), qdict_next()
 */
import type { GraphNode } from "./graph-node.ts";

type Options = { readonly [name: string]: unknown };

/** Longer names are cut. */
const FILENAME_LENGTH_MAX = 4095;
/** Hash buckets of QEMU's dictionaries. */
const BUCKET_COUNT = 512;

export function imageFilename(node: GraphNode): string {
  const exact = exactFilename(node);
  if (exact !== undefined) return exact;
  const name = `json:${format(fullOptions(node))}`;
  return name.length <= FILENAME_LENGTH_MAX ? name : `${name.slice(0, FILENAME_LENGTH_MAX - 3)}...`;
}

/** A format takes over its file's, unless options of its own change what is seen of it. */
function exactFilename(node: GraphNode): string | undefined {
  const { driver, definition, info, children } = node;
  const filenameOf = (role: string): string | undefined => {
    const child = children.find((edge) => edge.role === role)?.child;
    return child === undefined ? undefined : exactFilename(child);
  };
  if (driver.exactFilename !== undefined) {
    return driver.exactFilename(definition.options, filenameOf);
  }
  if (info.description.exactFilename !== undefined) return info.description.exactFilename;
  if (driver.isProtocol === true || driver.filtered !== undefined) return undefined;
  if (Object.keys(strongOptions(node)).length > 0 || isBackingOverridden(node)) return undefined;
  const file = children.find(({ role }) => role === "file")?.child;
  return file?.driver.isProtocol === true ? exactFilename(file) : undefined;
}

/** What lies behind the image is not what the image itself names. */
function isBackingOverridden({ info, children }: GraphNode): boolean {
  const named = info.description.image?.["backing-filename"];
  const backing = children.find(({ role }) => role === "backing");
  if (backing === undefined) return named !== undefined;
  return !backing.isImplied && named !== imageFilename(backing.child);
}

function strongOptions({ driver, definition }: GraphNode): Options {
  const strong = (driver.strongOptions ?? []).flatMap((name) => {
    const value = memberOf(definition.options, name);
    return value === undefined ? [] : [[name, value] as const];
  });
  return Object.fromEntries(strong.flatMap(([name, value]) => flat(name, value)));
}

/** `name`: of a member, or "member.member". */
function memberOf(options: Options, name: string): unknown {
  return name.split(".").reduce<unknown>((value, part) => (value as Options)?.[part], options);
}

/** Lists are members with an index, "list.0.member", as the command line has them. */
function flat(name: string, value: unknown): (readonly [string, unknown])[] {
  if (!Array.isArray(value)) return [[name, value]];
  return value.flatMap((item: unknown, at) =>
    item === null || typeof item !== "object"
      ? [[`${name}.${at}`, item] as const]
      : Object.entries(item).flatMap(([key, member]) => flat(`${name}.${at}.${key}`, member)),
  );
}

/** What it takes to open the same tree. */
function fullOptions(node: GraphNode): Options {
  const overridden = isBackingOverridden(node);
  const children: (readonly [string, Options | null])[] = node.children
    .filter(({ role }) => role !== "backing" || overridden)
    .map(({ role, child }) => [role, fullOptions(child)]);
  const hasBacking = node.children.some(({ role }) => role === "backing");
  if (overridden && !hasBacking) children.push(["backing", null]);
  return { driver: node.driver.name, ...strongOptions(node), ...Object.fromEntries(children) };
}

/** JSON as QEMU writes it, members in the order of its dictionaries. */
function format(value: unknown): string {
  if (value === null || typeof value !== "object") return scalar(value);
  if (Array.isArray(value)) return `[${value.map(format).join(", ")}]`;
  const members = Object.entries(value).sort(([one], [other]) => bucketOf(one) - bucketOf(other));
  return `{${members.map(([name, item]) => `${scalar(name)}: ${format(item)}`).join(", ")}}`;
}

function scalar(value: unknown): string {
  return JSON.stringify(value).replace(/[^ -~]/g, (unit) => {
    return `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  });
}

/** QEMU's tdb_hash(). */
function bucketOf(name: string): number {
  const bytes = new TextEncoder().encode(name);
  let hash = Math.imul(0x238f13af, bytes.length);
  bytes.forEach((byte, i) => {
    hash += byte << ((i * 5) % 24);
  });
  return ((Math.imul(1103515243, hash) + 12345) >>> 0) % BUCKET_COUNT;
}
