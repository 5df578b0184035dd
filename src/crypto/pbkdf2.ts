/**
 * PBKDF2 with HMAC, on a thread of the runtime's own: long computations don't keep this one.
 * Thread: main; an iothread's event loop would never hear of the end.
 * Spec: RFC 8018 "5.2 PBKDF2"
 */
import { pbkdf2 } from "node:crypto";

export interface Derivation {
  readonly password: Uint8Array;
  readonly salt: Uint8Array;
  readonly iterations: number;
  readonly bytes: number;
  readonly hash: string;
}

export function derive(parts: Derivation): Promise<Uint8Array> {
  const { password, salt, iterations, bytes, hash } = parts;
  return new Promise((resolve, reject) => {
    pbkdf2(password, salt, iterations, bytes, hash, (error, key) => {
      if (error === null) resolve(key);
      else reject(error);
    });
  });
}

/** A measurement that is shorter says little. */
const MEASURE_MS_MIN = 50;
const MEASURE_ITERATIONS_FIRST = 1 << 15;

/** How many iterations this machine does in a second. */
export async function iterationsPerSecond(
  parts: Omit<Derivation, "iterations">,
  now: () => number = () => performance.now(),
): Promise<number> {
  for (let iterations = MEASURE_ITERATIONS_FIRST; ; iterations *= 2) {
    const start = now();
    (await derive({ ...parts, iterations })).fill(0);
    const ms = now() - start;
    if (ms >= MEASURE_MS_MIN) return Math.floor((iterations * 1000) / ms);
  }
}
