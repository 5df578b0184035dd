/**
 * Base64 as QSD reads it: strict in the characters, lenient in where they stand. Pure.
 * Spec: QEMU util/base64.c; GLib g_base64_decode()
 */
import { OutportError } from "../../util/error.ts";

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const PADDING = 0x3d;
const NEWLINE = 0x0a;
const NO_CHARACTER = 0xff;

/** By byte. Padding counts as a zero. */
const VALUES = new Uint8Array(256).fill(NO_CHARACTER);
for (let value = 0; value < ALPHABET.length; value++) VALUES[ALPHABET.charCodeAt(value)] = value;
VALUES[PADDING] = 0;

/** The caller owns the bytes. Characters after the last group of four count for nothing. */
export function decodeBase64(text: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.ceil(text.length / 4) * 3);
  let length = 0;
  let group = 0;
  let count = 0;
  let beforeLast = 0;
  let last = 0;
  for (const character of text) {
    if (character === NEWLINE) continue;
    const value = VALUES[character] as number;
    if (value === NO_CHARACTER) {
      bytes.fill(0);
      throw new OutportError("invalid", "Base64 data contains invalid characters");
    }
    beforeLast = last;
    last = character;
    group = (group << 6) | value;
    if (++count < 4) continue;
    bytes[length++] = group >> 16;
    if (beforeLast !== PADDING) bytes[length++] = group >> 8;
    if (last !== PADDING) bytes[length++] = group;
    count = 0;
  }
  const decoded = bytes.slice(0, length);
  bytes.fill(0);
  return decoded;
}
