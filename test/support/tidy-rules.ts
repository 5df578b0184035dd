/**
 * The rules that the tree keeps, each a function from files to complaints: "path: what is wrong".
 * The layers are those of the design: an upper one may import a lower one, never the reverse.
 */

import type { SourceFile } from "./tidy-source.ts";

export type Rule = (files: readonly SourceFile[]) => string[];

const LINE_COLUMNS_MAX = 100;
const FILE_LINES_MAX = 600;
const ABI_LINES_MAX = 150;
const FUNCTION_LINES_MAX = 70;

/** Longer than a function should be, because in pieces they would be harder to read. */
const LONG_FUNCTIONS: readonly string[] = [];

const PACKAGES = ["hono", "valibot"];
const PURE_NODE_MODULES = ["node:util", "node:path", "node:crypto", "node:zlib"];

/** First match wins; `plugin` captures whose files a file may import beside the lower layers. */
const LAYERS: readonly { layer: number; path: RegExp }[] = [
  { layer: 6, path: /^src\/(main|parts|iothread\/worker)\.ts$/ },
  { layer: 5, path: /^src\/(cli|http)\// },
  { layer: 4, path: /^src\/qmp\// },
  { layer: 2, path: /^src\/(exports\/(?!index)[^/]+|objects\/registry|jobs\/job(-\w+)?)\.ts$/ },
  { layer: 3, path: /^src\/(block\/drivers|exports|jobs|objects)\/(?<plugin>[^/]+)/ },
  { layer: 2, path: /^src\/(block|chardev|virtio|bitmaps|crypto)\// },
  { layer: 1, path: /^src\/(io|iothread|qapi)\// },
  { layer: 0, path: /^src\/(abi|runtime|util)\// },
];

interface Place {
  readonly layer: number;
  /** Kind and name of a plug-in, as "block/drivers/raw"; undefined for everything else. */
  readonly plugin: string | undefined;
}

export function placeOf(path: string): Place | undefined {
  for (const { layer, path: pattern } of LAYERS) {
    const found = pattern.exec(path);
    if (found === null) continue;
    const name = found.groups?.plugin?.replace(/\.ts$/, "");
    return { layer, plugin: name === undefined ? undefined : `${found[1]}/${name}` };
  }
  return undefined;
}

/** The table of one kind's plug-ins, which names them all. */
const isTable = (plugin: string | undefined) => plugin?.endsWith("/index") === true;

const inFolder = (files: readonly SourceFile[], ...folders: string[]) =>
  files.filter((file) => folders.some((folder) => file.path.startsWith(folder + "/")));

export const layersHold: Rule = (files) =>
  inFolder(files, "src").flatMap((file) => {
    const place = placeOf(file.path);
    if (place === undefined) return [`${file.path}: belongs to no layer`];
    return file.imports.flatMap(({ target }) => {
      if (!target.startsWith("src/")) return [];
      const lower = placeOf(target);
      if (lower === undefined) return [`${file.path}: imports ${target}, which has no layer`];
      if (lower.layer > place.layer) {
        return [`${file.path}: layer ${place.layer} imports ${target} of layer ${lower.layer}`];
      }
      const bothPlugins = place.plugin !== undefined && lower.plugin !== undefined;
      if (bothPlugins && place.plugin !== lower.plugin && !isTable(place.plugin)) {
        return [`${file.path}: a plug-in imports another, ${target}`];
      }
      return [];
    });
  });

export const importsAllowed: Rule = (files) =>
  inFolder(files, "src").flatMap((file) =>
    file.imports
      .filter(({ target }) => {
        if (target.startsWith("src/")) return false;
        if (PURE_NODE_MODULES.includes(target)) return false;
        return !PACKAGES.some((name) => target === name || target.startsWith(name + "/"));
      })
      .map(({ target }) => `${file.path}: may not import ${target}`),
  );

/** A driver uses the composition root, the worker and what is below the block layer. */
export const driversStayOut: Rule = (files) =>
  inFolder(files, "drivers").flatMap((file) => {
    const own = file.path.split("/").slice(0, 2).join("/") + "/";
    return file.imports
      .map(({ target }) => target)
      .filter((target) => {
        if (target.startsWith("drivers/")) {
          return !target.startsWith(own) && !target.startsWith("drivers/node/");
        }
        const layer = placeOf(target)?.layer;
        return layer !== undefined && layer > 1 && layer < 6;
      })
      .map((target) => `${file.path}: a runtime driver may not import ${target}`);
  });

/** Imports of types count only for layers: they are gone when the code runs. */
export const noCycles: Rule = (files) => {
  const edges = new Map(
    files.map((file) => [
      file.path,
      file.imports.filter((line) => !line.typeOnly).map((line) => line.target),
    ]),
  );
  const done = new Set<string>();
  const found: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    const start = trail.indexOf(path);
    if (start >= 0) found.push(`${path}: cycle ${[...trail.slice(start), path].join(" -> ")}`);
    if (start >= 0 || done.has(path)) return;
    for (const next of edges.get(path) ?? []) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const path of edges.keys()) visit(path, []);
  return found;
};

/** Complains about each line of `text` that matches. */
function lineRule(
  files: readonly SourceFile[],
  pattern: RegExp,
  complaint: string,
  text: (file: SourceFile) => readonly string[] = (file) => file.lines,
): string[] {
  return files.flatMap((file) =>
    text(file).flatMap((line, index) =>
      pattern.test(line) ? [`${file.path}:${index + 1}: ${complaint}`] : [],
    ),
  );
}

const codeLines = (file: SourceFile) => file.code.split("\n");

export const noRuntimeNamed: Rule = (files) =>
  lineRule(inFolder(files, "src"), /\b(Bun|Deno)\b|\bbun:/, "names a runtime");

/** The linter bans `any` and more; nothing may silence it or the compiler. */
export const nothingSilenced: Rule = (files) => {
  const checked = inFolder(files, "src", "drivers", "compile").filter(
    (file) => !/^drivers\/[^/]+\/ffi\.ts$/.test(file.path),
  );
  return lineRule(
    checked,
    new RegExp("biome-" + "ignore|@ts-(ignore|nocheck|expect-error)"),
    "silenced",
  );
};

export const linesShort: Rule = (files) =>
  lineRule(files, new RegExp(`^.{${LINE_COLUMNS_MAX + 1}}`, "u"), "line too long");

const LEFTOVER = new RegExp(
  ["TO" + "DO", "FIX" + "ME", "X" + "XX"].map((w) => `\\b${w}\\b`).join("|"),
);
export const noLeftovers: Rule = (files) => lineRule(files, LEFTOVER, "leftover");

export const noTestLeftOut: Rule = (files) =>
  lineRule(
    inFolder(files, "test"),
    /\b(test|describe|it)\.(only|skip|todo)\b/,
    "left out",
    codeLines,
  );

export const filesShort: Rule = (files) =>
  files.flatMap((file) => {
    const linesMax = file.path.startsWith("src/abi/") ? ABI_LINES_MAX : FILE_LINES_MAX;
    const { length } = file.lines;
    return length > linesMax ? [`${file.path}: ${length} lines, ${linesMax} allowed`] : [];
  });

export const filesSayWhatTheyAre: Rule = (files) =>
  files
    .filter((file) => !file.path.endsWith(".test.ts"))
    .filter((file) => !/^(#![^\n]*\n)?\s*(\/\*\*|\/\/)/.test(file.text))
    .map((file) => `${file.path}: has no header comment`);

export const abiNamesItsSpec: Rule = (files) =>
  inFolder(files, "src/abi")
    .filter((file) => !/^[\s/*]*Spec: \S/m.test(file.text) && !/\bSpec: \S/.test(file.text))
    .map((file) => `${file.path}: has no "Spec:" line`);

export const functionsShort: Rule = (files) =>
  inFolder(files, "src", "drivers", "compile").flatMap((file) =>
    functionsOf(file)
      .filter(({ name, linesCount }) => {
        return linesCount > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.includes(`${file.path} ${name}`);
      })
      .map(({ name, line, linesCount }) => `${file.path}:${line}: ${name} has ${linesCount} lines`),
  );

export interface FunctionSpan {
  readonly name: string;
  /** Of its first line, from 1. */
  readonly line: number;
  readonly linesCount: number;
}

const NOT_A_FUNCTION = /^\s*(?:\} )?(?:if|else|for|while|switch|catch|do|try|with)\b/;
const OPENS_BODY = /(?:\)(?:: [^=]*)?|=>) \{$/;

/** Functions with a body of several lines; relies on the formatter's indentation. */
export function functionsOf(file: SourceFile): FunctionSpan[] {
  const lines = codeLines(file).map((line) => line.trimEnd());
  const indentOf = (line: string) => line.length - line.trimStart().length;
  return lines.flatMap((opener, at) => {
    if (!OPENS_BODY.test(opener)) return [];
    const indent = indentOf(opener);
    let first = at;
    if (/^\s*\)/.test(opener)) {
      do first -= 1;
      while (first > 0 && (lines[first] === "" || indentOf(lines[first]!) > indent));
    }
    if (NOT_A_FUNCTION.test(lines[first]!)) return [];
    const length = lines.slice(at + 1).findIndex((line) => {
      return line.trimStart().startsWith("}") && indentOf(line) === indent;
    });
    const name = /(?:function\*? |const |let )?([\w$#]+)\s*(?:[<(=:]|$)/.exec(lines[first]!)?.[1];
    return [{ name: name ?? "function", line: first + 1, linesCount: at - first + length + 2 }];
  });
}

const TOP_LEVEL = [
  "LICENSE",
  "README.md",
  "compile",
  "deno.json",
  "dist",
  "drivers",
  "node_modules",
  "package-lock.json",
  "package.json",
  "src",
  "test",
  "tsconfig.json",
];

export const topLevelKnown = (names: readonly string[]) =>
  names
    .filter((name) => !name.startsWith(".") && !TOP_LEVEL.includes(name))
    .map((name) => `${name}: does not belong at the top level`);
