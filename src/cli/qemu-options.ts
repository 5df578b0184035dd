/**
 * Options of the older kind, flat lists of key=value that are no QAPI: --chardev and --trace. Pure.
 * Spec: QEMU util/qemu-option.c
 */
import { isWellformedId } from "../block/catalogue.ts";
import { parseInteger, parseSwitch } from "../qapi/numbers.ts";
import { invalid } from "../util/error.ts";
import { isHelp, keyLength, parseValue } from "./keyval.ts";

/** One option: what its help calls it, the key of a first bare word, and the keys' types. */
export interface QemuOptionList {
  readonly name: string;
  readonly impliedKey: string;
  readonly keys: Readonly<Record<string, keyof typeof TYPES>>;
}

const U64_MAX = 2n ** 64n - 1n;
const TYPES = { str: "str", bool: "bool (on/off)", num: "num", size: "size" } as const;

export type QemuOptions = Readonly<Record<string, string>>;

/** A bare word that stood for a switch: still understood, and better written as `meaning`. */
export type OnShortForm = (word: string, meaning: string) => void;

/**
 * The values by key, later ones win, or "help" when that was among them. Throws an OutportError in
 * QEMU's words.
 */
export function parseQemuOptions(
  text: string,
  list: QemuOptionList,
  onShortForm: OnShortForm,
): QemuOptions | "help" {
  const items = readItems(text, list.impliedKey);
  // Looked for as if no word were implied: in that, two commas are two.
  const id = readItems(text, null).find(({ key }) => key === "id")?.value;
  if (id !== undefined && !isWellformedId(id)) {
    throw invalid("Parameter 'id' expects an identifier");
  }
  const values: Record<string, string> = id === undefined ? {} : { id };
  for (const { key, value, word } of items) {
    if (word !== undefined && isHelp(word)) return "help";
    if (word !== undefined) onShortForm(word, `${key}=${value}`);
    if (key === "id") continue;
    checkValue(list, key, value);
    values[key] = value;
  }
  return values;
}

/** What "help" among the items prints. */
export function qemuOptionsHelp({ name, keys }: QemuOptionList): string {
  const lines = Object.entries(keys).map(([key, type]) => `  ${key}=<${TYPES[type]}>\n`);
  return `${name} options:\n${lines.sort().join("")}`;
}

interface Item {
  readonly key: string;
  readonly value: string;
  /** As it was written, when it had no "=" and was not the first. */
  readonly word?: string;
}

function readItems(text: string, impliedKey: string | null): Item[] {
  const items: Item[] = [];
  let at = 0;
  while (at < text.length) {
    const length = keyLength(text, at);
    const key = text.slice(at, at + length);
    if (text[at + length] === "=") {
      const { value, end } = parseValue(text, at + length + 1);
      items.push({ key, value });
      at = end;
    } else if (at === 0 && impliedKey !== null) {
      const { value, end } = parseValue(text, 0);
      items.push({ key: impliedKey, value });
      at = end;
    } else {
      const off = key.startsWith("no");
      items.push({ key: off ? key.slice(2) : key, value: off ? "off" : "on", word: key });
      at += length + 1;
    }
  }
  return items;
}

function checkValue({ keys }: QemuOptionList, key: string, value: string): void {
  const type = Object.hasOwn(keys, key) ? keys[key] : undefined;
  if (type === undefined) throw invalid(`Invalid parameter '${key}'`);
  if (type === "bool" && parseSwitch(value) === undefined) {
    throw invalid(`Parameter '${key}' expects 'on' or 'off'`);
  }
  if (type !== "num") return;
  const number = parseInteger(value);
  if (number === undefined) throw invalid(`Parameter '${key}' expects a number`);
  if (number < -U64_MAX || number > U64_MAX) {
    throw invalid(`Value '${value}' is too large for parameter '${key}'`);
  }
}
