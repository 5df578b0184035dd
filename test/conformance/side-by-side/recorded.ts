/** The answers of the reference release, qemu-storage-daemon 11.1.3. Written by record.ts. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Printed, Transcript } from "./play.ts";

export interface Recorded {
  readonly scenes: Record<string, Transcript>;
  /** By the arguments, joined by blanks. */
  readonly commandLines: Record<string, Printed>;
}

export function readRecorded(): Recorded {
  return JSON.parse(readFileSync(join(import.meta.dirname, "recorded.json"), "utf8")) as Recorded;
}
