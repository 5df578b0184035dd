/**
 * Writes a value as JSON the way QSD does, to the blank: scripts compare its lines as text.
 * Pure.
 * Spec: QEMU qobject/json-writer.c
 */
import { Double } from "../qapi/numbers.ts";

const INDENT = "    ";

/** One line, or with `pretty` several. Undefined members are left out; ASCII only. */
export function formatJson(value: unknown, pretty = false): string {
  return format(value, pretty ? "\n" : "");
}

/** `newline` is what begins a line at this depth, or empty. */
function format(value: unknown, newline: string): string {
  if (typeof value === "string") return quote(value);
  if (typeof value === "number") return formatNumber(value);
  if (typeof value === "bigint") return value.toString();
  if (value instanceof Double) return formatDouble(value.value);
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  const inner = newline === "" ? "" : newline + INDENT;
  return Array.isArray(value)
    ? formatArray(value, newline, inner)
    : formatObject(value, newline, inner);
}

function formatArray(items: readonly unknown[], newline: string, inner: string): string {
  let text = "";
  for (const item of items) {
    text += text === "" ? inner : separator(inner);
    text += format(item, inner);
  }
  return `[${text}${newline}]`;
}

function formatObject(members: object, newline: string, inner: string): string {
  let text = "";
  for (const [key, item] of Object.entries(members)) {
    if (item === undefined) continue;
    text += text === "" ? inner : separator(inner);
    text += `${quote(key)}: ${format(item, inner)}`;
  }
  return `{${text}${newline}}`;
}

function separator(inner: string): string {
  return inner === "" ? ", " : `,${inner}`;
}

function formatNumber(value: number): string {
  return Number.isSafeInteger(value) ? value.toString() : formatDouble(value);
}

/** As C's %.17g. */
function formatDouble(value: number): string {
  if (Object.is(value, -0)) return "-0";
  // QSD differs: it writes inf, which is no JSON; this is read as the same.
  if (!Number.isFinite(value)) return value < 0 ? "-1e999" : "1e999";
  const [digits = "", exponent = "0"] = value.toExponential(16).split("e");
  const power = Number(exponent);
  if (power >= -4 && power < 17) return withoutZeros(value.toFixed(16 - power));
  const sign = power < 0 ? "-" : "+";
  return `${withoutZeros(digits)}e${sign}${String(Math.abs(power)).padStart(2, "0")}`;
}

function withoutZeros(text: string): string {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** What is neither plain ASCII nor safe between quotes. */
const ESCAPED = /["\\]|[^ -~]/g;
const PLAIN = /^[ !#-[\]-~]*$/;
const SHORT_ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  "\\": "\\\\",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
};

function quote(text: string): string {
  return PLAIN.test(text) ? `"${text}"` : `"${text.replace(ESCAPED, escapeUnit)}"`;
}

function escapeUnit(unit: string): string {
  const code = unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
  return SHORT_ESCAPES[unit] ?? `\\u${code}`;
}
