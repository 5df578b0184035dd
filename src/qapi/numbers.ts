/**
 * Numbers and switches as the command line writes them, and JSON numbers that are no integers.
 * Pure.
 * Spec: QEMU util/cutils.c: qemu_strtoi64(), qemu_strtou64(), qemu_strtosz();
 * qapi/qapi-util.c: qapi_bool_parse()
 */

/**
 * A JSON number that is written with a fraction or an exponent and yet is whole, as 1.0 or 1e3:
 * the parser tells it apart because no integer may be written so.
 */
export class Double {
  readonly value: number;

  constructor(value: number) {
    this.value = value;
  }

  toJSON(): number {
    return this.value;
  }
}

/** An integer in C's notation: blanks, a sign, then decimal, 0x hexadecimal or 0 octal. */
const INTEGER = /^[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$/;
const SIZE = /^[ \t\n\v\f\r]*\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([bBkKmMgGtTpPeE]?)$/;
const SIZE_HEX = /^[ \t\n\v\f\r]*\+?0[xX]([0-9a-fA-F]+)$/;
const SIZE_UNITS = "bkmgtpe";

/** Undefined when `text` is not one of the words for on and off. */
export function parseSwitch(text: string): boolean | undefined {
  if (["on", "yes", "true", "y"].includes(text)) return true;
  return ["off", "no", "false", "n"].includes(text) ? false : undefined;
}

/** Undefined when `text` is not an integer. */
export function parseInteger(text: string): bigint | undefined {
  const match = INTEGER.exec(text);
  if (match === null) return undefined;
  const [, sign = "", digits = ""] = match;
  const octal = digits.length > 1 && /^0[0-7]/.test(digits);
  const value = BigInt(octal ? `0o${digits.slice(1)}` : digits);
  return sign === "-" ? -value : value;
}

/** Bytes with an optional fraction and unit (powers of 1024). Undefined when it is not a size. */
export function parseSize(text: string): bigint | undefined {
  const hex = SIZE_HEX.exec(text);
  if (hex !== null) return BigInt(`0x${hex[1]}`);
  const match = SIZE.exec(text);
  if (match === null) return undefined;
  const [, digits = "", suffix = ""] = match;
  const unit = 1024n ** BigInt(Math.max(0, SIZE_UNITS.indexOf(suffix.toLowerCase())));
  const [whole = "", fraction = ""] = digits.split(".");
  // Bytes have no halves.
  if (unit === 1n && /[1-9]/.test(fraction)) return undefined;
  const bytes = BigInt(whole || "0") * unit;
  return bytes + BigInt(Math.round(Number(`0.${fraction || "0"}`) * Number(unit)));
}
