/** `npm run build`: makes dist/outport, one executable that holds everything. */

import { chmodSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, resolve } from "node:path";

export const ROOT = resolve(import.meta.dirname, "..");
export const EXECUTABLE = resolve(ROOT, "dist/outport");

/**
 * Environment variables through which the runtime inside would become a command line of its own,
 * run foreign code or open a debugger. It has no option to ignore them.
 */
const UNWANTED_VARIABLES = ["BUN_BE_BUN", "BUN_OPTIONS", "BUN_INSPECT"];

/** The commit being built, as `git describe` names it; empty outside a checkout. */
export function describeCommit(): string {
  const command = ["git", "describe", "--tags", "--always", "--dirty"];
  try {
    const git = Bun.spawnSync(command, { cwd: ROOT, stderr: "ignore" });
    return git.success ? git.stdout.toString().trim() : "";
  } catch {
    return ""; // No git.
  }
}

/** Renames the unwanted variables in the executable's bytes, where they have no other meaning. */
function renameVariables(path: string): void {
  const bytes = readFileSync(path);
  for (const name of UNWANTED_VARIABLES) {
    let at = bytes.indexOf(name);
    if (at < 0) throw new Error(`Cannot neutralize ${name}: this runtime does not mention it`);
    for (; at >= 0; at = bytes.indexOf(name, at + name.length)) {
      bytes[at] = name.toLowerCase().charCodeAt(0);
    }
  }
  writeFileSync(path, bytes);
}

export async function buildExecutable(): Promise<void> {
  // The name stays in the executable, so that only the folder is another.
  const workshop = resolve(ROOT, "dist/unfinished");
  const unfinished = resolve(workshop, basename(EXECUTABLE));
  const built = await Bun.build({
    // All in one folder, as a thread's entry is found beside the module that starts it.
    entrypoints: ["main", "iothread", "offload"].map((name) => `${ROOT}/drivers/bun/${name}.ts`),
    target: "bun",
    format: "esm",
    // Names stay and source lines are kept, so that a crash report can be read.
    minify: { whitespace: true, syntax: true, identifiers: false },
    sourcemap: "inline",
    bytecode: true,
    define: { OUTPORT_BUILD: JSON.stringify(describeCommit()) },
    compile: {
      outfile: unfinished,
      autoloadDotenv: false,
      autoloadBunfig: false,
      autoloadTsconfig: false,
      autoloadPackageJson: false,
    },
  });
  if (!built.success) throw new AggregateError(built.logs, "The build failed");
  renameVariables(unfinished);
  chmodSync(unfinished, 0o755);
  // A daemon that runs from the old file keeps it.
  renameSync(unfinished, EXECUTABLE);
  rmSync(workshop, { recursive: true });
}

if (import.meta.main) await buildExecutable();
