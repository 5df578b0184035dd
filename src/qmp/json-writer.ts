/**
 * Writes a value as JSON the way QSD does, to the blank: scripts compare its lines as text.
 * Pure.
 * Spec: QEMU qobject/json-writer.c
 */

const INDENT = "    ";

/** One line, or with `pretty` several. Undefined members are left out; ASCII only. */
export function formatJson(value: unknown, pretty = false): string {
  return format(value, pretty ? "\n" : "");
}

/** `newline` is what begins a line at this depth, or empty. */
function format(value: unknown, newline: string): string {
  if (typeof value === "string") return quote(value);
  if (typeof value === "bigint") return value.toString();
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  const inner = newline === "" ? "" : newline + INDENT;
  const array = Array.isArray(value);
  const items = array
    ? value.map((item) => inner + format(item, inner))
    : Object.entries(value)
        .filter(([, item]) => item !== undefined)
        .map(([key, item]) => `${inner}${quote(key)}: ${format(item, inner)}`);
  const text = items.join(newline === "" ? ", " : ",") + newline;
  return array ? `[${text}]` : `{${text}}`;
}

/** What is neither plain ASCII nor safe between quotes. */
const ESCAPED = /["\\]|[^ -~]/g;
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
  return `"${text.replace(ESCAPED, escapeUnit)}"`;
}

function escapeUnit(unit: string): string {
  const code = unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
  return SHORT_ESCAPES[unit] ?? `\\u${code}`;
}
