/**
 * Writes recorded.json: what the reference release of qemu-storage-daemon answers to all scenes.
 * Run: bun test/conformance/side-by-side/record.ts PROGRAM [ARGUMENT...]
 */

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { commandLines, scenes } from "./index.ts";
import { play, print } from "./play.ts";
import type { Recorded } from "./recorded.ts";

const command = process.argv.slice(2);
const recorded: Recorded = { scenes: {}, commandLines: {} };
for (const scene of scenes) recorded.scenes[scene.name] = await play(command, scene);
for (const line of commandLines) {
  recorded.commandLines[line.args.join(" ")] = await print(command, line);
}
const path = join(import.meta.dirname, "recorded.json");
await writeFile(path, `${JSON.stringify(recorded, null, 1)}\n`);
