/** All scenes and command lines. */

import { commandLines } from "./command-lines.ts";
import { bitmapScenes } from "./scenes/bitmaps.ts";
import { blockScenes } from "./scenes/block.ts";
import { checkScenes } from "./scenes/checks.ts";
import { exploredScenes } from "./scenes/explored.ts";
import { exportScenes } from "./scenes/exports.ts";
import { jobScenes } from "./scenes/jobs.ts";
import { monitorScenes } from "./scenes/monitor.ts";
import { objectScenes } from "./scenes/objects.ts";
import { snapshotScenes } from "./scenes/snapshots.ts";
import type { Scene } from "./script.ts";

export const scenes: readonly Scene[] = [
  ...monitorScenes,
  ...checkScenes,
  ...blockScenes,
  ...exportScenes,
  ...objectScenes,
  ...bitmapScenes,
  ...jobScenes,
  ...snapshotScenes,
  ...exploredScenes,
];
export { commandLines };
