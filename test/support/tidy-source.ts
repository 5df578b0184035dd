/** The tree as the tidy rules see it: files with their text, their code alone, their imports. */

import { readdirSync, readFileSync } from "node:fs";
import { posix } from "node:path";

export interface SourceFile {
  /** From the top of the repository, with "/". */
  readonly path: string;
  readonly text: string;
  readonly lines: readonly string[];
  /** The text with comments and the insides of strings blanked; line breaks stay. */
  readonly code: string;
  readonly imports: readonly ImportLine[];
}

export interface ImportLine {
  /** As written for a package or `node:` module, resolved from the top for a relative one. */
  readonly target: string;
  /** Erased when run: an `import type`. */
  readonly typeOnly: boolean;
}

export function sourceFile(path: string, text: string): SourceFile {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return { path, text, lines, code: codeOnly(text), imports: importsOf(path, text) };
}

/** Every TypeScript file under the folders, with paths from `root`. */
export function readTree(root: string, folders: readonly string[]): SourceFile[] {
  const files: SourceFile[] = [];
  for (const folder of folders) {
    const entries = readdirSync(`${root}/${folder}`, { recursive: true, withFileTypes: true });
    for (const entry of entries) {
      if (!entry.isFile() || !entry.name.endsWith(".ts")) continue;
      const path = `${entry.parentPath}/${entry.name}`;
      files.push(sourceFile(posix.relative(root, path), readFileSync(path, "utf8")));
    }
  }
  return files.sort((a, b) => (a.path < b.path ? -1 : 1));
}

const COMMENT = /\/\/[^\n]*|\/\*[\s\S]*?\*\//.source;
const QUOTED = /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'/.source;
const TEMPLATE = /`(?:\\[\s\S]|[^`\\])*`/.source;
const STRING = `${QUOTED}|${TEMPLATE}`;
/** A slash begins a regular expression where a value may begin. */
const REGEXP = /(?<=[(,=:[!&|?{};]\s*)\/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n])+\//.source;
const NOT_CODE = new RegExp([COMMENT, STRING, REGEXP].join("|"), "g");

export function codeOnly(text: string): string {
  return text.replace(NOT_CODE, (found) => found.replace(/[^\n]/g, " "));
}

const IMPORT = new RegExp(
  [
    /^(?:import|export)\b(\s+type\b)?[^;"']*?\bfrom\s*["']([^"']+)["']/.source,
    /^import\s*["']([^"']+)["']/.source,
    /\bimport\(\s*["']([^"']+)["']\s*\)/.source,
  ].join("|"),
  "gm",
);

export function importsOf(path: string, text: string): ImportLine[] {
  const withoutComments = text.replace(new RegExp(`${STRING}|${COMMENT}`, "g"), (found) =>
    found.startsWith("/") ? " " : found,
  );
  return [...withoutComments.matchAll(IMPORT)].map((found) => {
    const written = found[2] ?? found[3] ?? found[4] ?? "";
    const target = written.startsWith(".")
      ? posix.normalize(posix.join(posix.dirname(path), written))
      : written;
    return { target, typeOnly: found[1] !== undefined };
  });
}
