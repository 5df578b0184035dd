/**
 * `npm run build:deno`: makes outport for Deno. Always dist/outport-deno/, plain JavaScript for
 * `deno run -A dist/outport-deno/main.js`; and one executable, dist/outport-deno/outport, where the
 * runtime that `deno compile` puts into it (denort) is there or can be downloaded.
 */

import { rmSync } from "node:fs";
import { resolve } from "node:path";
import { describeCommit, ROOT } from "./bun.ts";

const FOLDER = resolve(ROOT, "dist/outport-deno");
const ENTRIES = ["main", "iothread", "offload"];

/** One file per thread kind, side by side as in drivers/deno, with nothing left to install. */
async function buildBundle(): Promise<void> {
  rmSync(FOLDER, { recursive: true, force: true });
  const built = await Bun.build({
    entrypoints: ENTRIES.map((name) => `${ROOT}/drivers/deno/${name}.ts`),
    outdir: FOLDER,
    target: "node",
    format: "esm",
    define: { OUTPORT_BUILD: JSON.stringify(describeCommit()) },
  });
  if (!built.success) throw new AggregateError(built.logs, "The build failed");
}

/** Says what is missing instead of failing: the bundle does the same work. */
function buildExecutable(): void {
  const threads = ENTRIES.slice(1).flatMap((name) => ["--include", `${FOLDER}/${name}.js`]);
  const output = ["--output", `${FOLDER}/outport`];
  const path = `${ROOT}/node_modules/.bin:${process.env.PATH}`;
  const deno = Bun.spawnSync(
    ["deno", "compile", "-A", "--no-check", "--no-config", ...threads, ...output, "main.js"],
    { cwd: FOLDER, env: { ...process.env, PATH: path, NO_COLOR: "1" } },
  );
  if (deno.success) {
    console.log(`made ${FOLDER}/outport`);
  } else {
    const reason = deno.stderr.toString().split("\nStack backtrace")[0];
    console.log(
      `no executable by deno compile: its runtime, denort, cannot be had here\n${reason}`,
    );
  }
}

await buildBundle();
console.log(`made ${FOLDER}/main.js: deno run -A ${FOLDER}/main.js --help`);
buildExecutable();
