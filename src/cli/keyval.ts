/**
 * Options written as key=value,key=value,... with dotted keys. Pure.
 * Spec: QEMU util/keyval.c
 */
import { OutportError } from "../util/error.ts";

/** Leaves are strings; a level whose keys are all numbers is an array. */
export type Keyval = { [key: string]: Keyval | string | Keyval[] | (Keyval | string)[] };
type Level = Map<string, Level | string>;

/** Longest key fragment. */
const FRAGMENT_LENGTH_MAX = 127;
const NAME = /^(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*/;
const INDEX = /^[0-9]+/;

/** `help`: an item was "help" or "?". */
export interface ParsedKeyval {
  readonly value: Keyval;
  readonly help: boolean;
}

/** `impliedKey` is the key of a first item without one. Throws an OutportError in QEMU's words. */
export function parseKeyval(text: string, impliedKey?: string): Keyval {
  const { value, help } = parseKeyvalOrHelp(text, impliedKey);
  if (help) throw new OutportError("invalid", "Help is not available for this option");
  return value;
}

/** The same for an option that can explain itself. */
export function parseKeyvalOrHelp(text: string, impliedKey?: string): ParsedKeyval {
  const root: Level = new Map();
  let help = false;
  let at = 0;
  while (at < text.length) {
    const length = keyLength(text, at);
    const bare = length > 0 && text[at + length] !== "=";
    if (bare && isHelp(text.slice(at, at + length))) {
      help = true;
      at += length + 1;
      continue;
    }
    const { value, end } = parseItem(text, at, length, bare && at === 0 ? impliedKey : undefined);
    const target = descend(root, value.key);
    put(target, value.key, value.text);
    at = end;
  }
  // A question is answered whatever else would be wrong.
  return { value: (help ? Object.fromEntries(root) : listify(root, "")) as Keyval, help };
}

export function isHelp(word: string): boolean {
  return word === "help" || word === "?";
}

/** Up to "=" or ",". */
export function keyLength(text: string, at: number): number {
  const length = text.slice(at).search(/[=,]/);
  return length < 0 ? text.length - at : length;
}

interface Item {
  readonly value: { readonly key: readonly string[]; readonly text: string };
  /** Where the next item begins. */
  readonly end: number;
}

function parseItem(text: string, at: number, length: number, implied: string | undefined): Item {
  if (implied !== undefined) {
    // A value without its key ends at the first comma, and has no escapes.
    const value = text.slice(at, at + length);
    return { value: { key: [implied], text: value }, end: at + length + 1 };
  }
  const key = parseKey(text.slice(at, at + length));
  if (text[at + length] !== "=") {
    const name = key.join(".");
    throw new OutportError("invalid", `Expected '=' after parameter '${name}'`);
  }
  const { value, end } = parseValue(text, at + length + 1);
  return { value: { key, text: value }, end };
}

/** The fragments of a dotted key: names, and from the second on also indexes. */
function parseKey(key: string): string[] {
  const fragments: string[] = [];
  for (let at = 0; ; at += 1) {
    const rest = key.slice(at);
    const match = (at > 0 ? INDEX.exec(rest) : null) ?? NAME.exec(rest);
    const fragment = match?.[0] ?? "";
    const next = key[at + fragment.length];
    if (fragment === "" || (next !== undefined && next !== ".")) {
      throw new OutportError("invalid", `Invalid parameter '${key}'`);
    }
    if (fragment.length > FRAGMENT_LENGTH_MAX) {
      const what = at > 0 ? "Parameter fragment" : "Parameter";
      throw new OutportError("invalid", `${what} '${fragment}' is too long`);
    }
    fragments.push(fragment);
    at += fragment.length;
    if (next === undefined) return fragments;
  }
}

/** A value ends at a single comma; two stand for one. */
export function parseValue(text: string, at: number): { value: string; end: number } {
  let value = "";
  for (let from = at; ; ) {
    const comma = text.indexOf(",", from);
    if (comma < 0) return { value: value + text.slice(from), end: text.length };
    value += text.slice(from, comma);
    if (text[comma + 1] !== ",") return { value, end: comma + 1 };
    value += ",";
    from = comma + 2;
  }
}

/** The level that holds the last fragment; made where it is missing. */
function descend(root: Level, key: readonly string[]): Level {
  let level = root;
  key.slice(0, -1).forEach((fragment, index) => {
    let next = level.get(fragment);
    if (next === undefined) {
      next = new Map();
      level.set(fragment, next);
    }
    if (typeof next === "string") throw inconsistent(key.slice(0, index + 1).join("."));
    level = next;
  });
  return level;
}

function put(level: Level, key: readonly string[], value: string): void {
  const last = key.at(-1) as string;
  const old = level.get(last);
  if (old !== undefined && typeof old !== "string") throw inconsistent(key.join("."));
  level.set(last, value);
}

/** Levels become objects, or arrays when their keys are indexes. `prefix` ends with a dot. */
function listify(level: Level, prefix: string): Keyval | (Keyval | string)[] {
  const entries = [...level].map(([key, value]): [string, Keyval | string] => [
    key,
    typeof value === "string" ? value : (listify(value, `${prefix}${key}.`) as Keyval),
  ]);
  const indexes = entries.filter(([key]) => INDEX.test(key));
  if (indexes.length === 0) return Object.fromEntries(entries);
  if (indexes.length < entries.length) throw inconsistent(prefix.slice(0, -1));
  const byIndex = new Map(entries.map(([key, value]) => [Number(key), value]));
  return entries.map((_, index) => {
    const value = byIndex.get(index);
    if (value === undefined) {
      throw new OutportError("invalid", `Parameter '${prefix}${index}' missing`);
    }
    return value;
  });
}

function inconsistent(key: string): OutportError {
  return new OutportError("invalid", `Parameters '${key}.*' used inconsistently`);
}
