/**
 * The configuration file of blkdebug: groups of key = "value" lines. Pure.
 * Spec: QEMU docs/devel/testing/blkdebug.rst; util/qemu-config.c
 */
import { parseInteger, parseSwitch } from "../../../qapi/numbers.ts";
import { OutportError } from "../../../util/error.ts";
import { EVENTS, type InjectError, IO_TYPES, type SetState } from "./rules.ts";

export interface BlkdebugConfig {
  readonly injectErrors: readonly InjectError[];
  readonly setStates: readonly SetState[];
}

type KeyKind = "event" | "iotype" | "number" | "switch";

const GROUPS: Readonly<Record<string, Readonly<Record<string, KeyKind>>>> = {
  "inject-error": {
    event: "event",
    state: "number",
    iotype: "iotype",
    errno: "number",
    "delay-ns": "number",
    sector: "number",
    once: "switch",
    immediately: "switch",
  },
  "set-state": { event: "event", state: "number", new_state: "number" },
};

interface Group {
  readonly name: string;
  readonly values: Record<string, unknown>;
}

/** Throws an OutportError; in QSD's words, after the place in the file. */
export function parseConfig(text: string): BlkdebugConfig {
  const groups: Group[] = [];
  for (const line of text.split("\n")) {
    if (line.trim() === "" || line.startsWith("#")) continue;
    const group = /^\[([^\]"]+)\]$/.exec(line)?.[1];
    if (group === undefined) addValue(groups.at(-1), line);
    else if (Object.hasOwn(GROUPS, group)) groups.push({ name: group, values: {} });
    else throw invalid(`There is no option group '${group}'`);
  }
  for (const { values } of groups) {
    if (values.event === undefined) throw invalid("Missing event name for rule");
  }
  const rulesOf = (name: string) =>
    groups.filter((group) => group.name === name).map(({ values }) => values as unknown);
  return {
    injectErrors: rulesOf("inject-error") as InjectError[],
    setStates: rulesOf("set-state").map((rule) => ({
      new_state: 0,
      ...(rule as object),
    })) as SetState[],
  };
}

function addValue(group: Group | undefined, line: string): void {
  const [, key = "", value = ""] = /^\s*([^\s"]+)\s*=\s*"([^"]*)"\s*$/.exec(line) ?? [];
  if (key === "") throw invalid("parse error");
  if (group === undefined) throw invalid("no group defined");
  const keys = GROUPS[group.name]!;
  if (!Object.hasOwn(keys, key)) throw invalid(`Invalid parameter '${key}'`);
  group.values[key] = parseValue(keys[key]!, key, value);
}

function parseValue(kind: KeyKind, key: string, text: string): string | number | boolean {
  if (kind === "number") {
    const value = parseInteger(text);
    if (value !== undefined && value >= 0n && value < 2n ** 53n) return Number(value);
    throw invalid(`Parameter '${key}' expects a number`);
  }
  if (kind === "switch") {
    const value = parseSwitch(text);
    if (value !== undefined) return value;
    throw invalid(`Parameter '${key}' expects 'on' or 'off'`);
  }
  const values: readonly string[] = kind === "event" ? EVENTS : IO_TYPES;
  if (values.includes(text)) return text;
  throw invalid(`invalid parameter value: ${text}`);
}

function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}
