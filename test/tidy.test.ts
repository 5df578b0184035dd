/** The tree keeps its rules, and each rule notices a tree that does not. */

import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { posix } from "node:path";
import { VERSION } from "../src/util/version.ts";
import * as rules from "./support/tidy-rules.ts";
import { codeOnly, importsOf, readTree, sourceFile } from "./support/tidy-source.ts";

const ROOT = posix.resolve(import.meta.dirname, "..");
const HEADER = "/** What it is. */\n";

/** `count` lines of the text. */
const times = (count: number, line: string) => (line + "\n").repeat(count);

const make = (files: Record<string, string>) =>
  Object.entries(files).map(([path, text]) => sourceFile(path, text));

interface RuleCase {
  readonly rule: rules.Rule;
  /** Trees that must draw at least one complaint, by what is wrong with them. */
  readonly bad: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** A tree that comes close and is right. */
  readonly good: Readonly<Record<string, string>>;
}

const CASES: Readonly<Record<string, RuleCase>> = {
  layersHold: {
    rule: rules.layersHold,
    bad: {
      "upwards import": { "src/io/ring.ts": 'import { a } from "../block/node.ts";' },
      "upwards type": { "src/abi/nbd.ts": 'import type { A } from "../io/ring.ts";' },
      "upwards re-export": { "src/qapi/a.ts": 'export { a } from "../qmp/monitor.ts";' },
      "upwards dynamic": { "src/block/node.ts": 'const a = await import("../main.ts");' },
      "several lines": { "src/io/a.ts": 'import {\n  a,\n  b,\n} from "../cli/options.ts";' },
      "plug-in to plug-in": { "src/block/drivers/raw.ts": 'import { a } from "./file.ts";' },
      "plug-in to other kind": { "src/exports/nbd/a.ts": 'import "../../objects/iothread.ts";' },
      "plug-in to its table": { "src/block/drivers/raw.ts": 'import { a } from "./index.ts";' },
      "no layer": { "src/misc/a.ts": "" },
    },
    good: {
      "src/main.ts": 'import { a } from "./cli/options.ts";\nimport "./exports/index.ts";',
      "src/block/drivers/index.ts": 'import { raw } from "./raw.ts";',
      "src/exports/nbd/index.ts": 'import { a } from "./server.ts";\nimport "../export.ts";',
      "src/io/ring.ts": '// import { a } from "../main.ts";\nimport { b } from "../abi/linux.ts";',
    },
  },
  importsAllowed: {
    rule: rules.importsAllowed,
    bad: {
      "node:fs": { "src/io/a.ts": 'import { open } from "node:fs";' },
      drivers: { "src/main.ts": 'import { a } from "../drivers/bun/driver.ts";' },
      package: { "src/main.ts": 'import a from "left-pad";' },
      runtime: { "src/main.ts": 'import { dlopen } from "bun:ffi";' },
    },
    good: {
      "src/main.ts":
        'import { Hono } from "hono";\nimport { sse } from "hono/streaming";\nimport "node:util";',
    },
  },
  driversStayOut: {
    rule: rules.driversStayOut,
    bad: {
      "block layer": { "drivers/bun/main.ts": 'import { a } from "../../src/block/node.ts";' },
      "other runtime": { "drivers/bun/main.ts": 'import { a } from "../deno/ffi.ts";' },
    },
    good: {
      "drivers/bun/main.ts":
        'import "../../src/main.ts";\nimport "../node/a.ts";\nimport "./ffi.ts";',
    },
  },
  noCycles: {
    rule: rules.noCycles,
    bad: {
      two: {
        "src/io/a.ts": 'import { b } from "./b.ts";',
        "src/io/b.ts": 'import { a } from "./a.ts";',
      },
      three: {
        "src/io/a.ts": 'import "./b.ts";',
        "src/io/b.ts": 'export * from "./c.ts";',
        "src/io/c.ts": 'import { a } from "./a.ts";',
      },
    },
    good: {
      "src/io/a.ts": 'import { b } from "./b.ts";\nimport { c } from "./c.ts";',
      "src/io/b.ts": 'import type { A } from "./a.ts";\nimport { c } from "./c.ts";',
      "src/io/c.ts": "",
    },
  },
  noRuntimeNamed: {
    rule: rules.noRuntimeNamed,
    bad: {
      identifier: { "src/io/a.ts": "const a = Bun.version;" },
      comment: { "src/io/a.ts": "// Slow on Deno." },
    },
    good: { "src/io/a.ts": "const bundle = 1;", "drivers/bun/ffi.ts": "Bun.version;" },
  },
  nothingSilenced: {
    rule: rules.nothingSilenced,
    bad: {
      linter: { "src/io/a.ts": `// ${"biome-" + "ignore"} lint/suspicious/noExplicitAny: lazy` },
      compiler: { "compile/a.ts": `// ${"@ts-" + "ignore"}` },
    },
    good: { "drivers/deno/ffi.ts": `// ${"@ts-" + "expect-error"}: no types here` },
  },
  linesShort: {
    rule: rules.linesShort,
    bad: { comment: { "src/io/a.ts": `// ${"a".repeat(98)}` } },
    good: { "src/io/a.ts": `// ${"é".repeat(97)}` },
  },
  noLeftovers: {
    rule: rules.noLeftovers,
    bad: { comment: { "src/io/a.ts": `// ${"TO" + "DO"}: later` } },
    good: { "src/io/a.ts": "// To do it later would be wrong." },
  },
  noTestLeftOut: {
    rule: rules.noTestLeftOut,
    bad: {
      only: { "test/unit/a.test.ts": 'test.only("a", () => {});' },
      skip: { "test/unit/a.test.ts": 'describe.skip("a", () => {});' },
    },
    good: { "test/unit/a.test.ts": 'test("test.only", () => {});\nlist.skip(1);' },
  },
  filesShort: {
    rule: rules.filesShort,
    bad: {
      source: { "src/io/a.ts": times(601, "// a") },
      abi: { "src/abi/a.ts": times(151, "// a") },
    },
    good: { "src/io/a.ts": times(600, "// a"), "src/abi/a.ts": times(150, "// a") },
  },
  filesSayWhatTheyAre: {
    rule: rules.filesSayWhatTheyAre,
    bad: { none: { "src/io/a.ts": 'import "./b.ts";\n/** Late. */' } },
    good: { "src/io/a.ts": HEADER, "compile/b.ts": `#!/usr/bin/env bun\n${HEADER}` },
  },
  abiNamesItsSpec: {
    rule: rules.abiNamesItsSpec,
    bad: { none: { "src/abi/nbd.ts": HEADER } },
    good: { "src/abi/nbd.ts": "/**\n * NBD.\n * Spec: doc/proto.md\n */", "src/io/a.ts": HEADER },
  },
  functionsShort: {
    rule: rules.functionsShort,
    bad: {
      function: { "src/io/a.ts": `function long(): void {\n${times(69, "  a();")}}` },
      method: { "src/io/a.ts": `class A {\n  run(a: B): C {\n${times(69, "    a();")}  }\n}` },
      arrow: { "src/io/a.ts": `const long = (a: B) => {\n${times(69, "  a();")}};` },
      signature: {
        "src/io/a.ts": `export function long(\n  a: number,\n): void {\n${times(67, "  a();")}}`,
      },
    },
    good: {
      "src/io/a.ts": `function fits(): void {\n${times(68, "  a();")}}\n`,
      "src/io/b.ts": `class Long {\n${times(100, "  a = 1;")}}`,
      "src/io/c.ts": `if (\n  a\n) {\n${times(100, "  a();")}}`,
      "test/unit/a.test.ts": `describe("a", () => {\n${times(100, "  a();")}});`,
    },
  },
};

const tree = readTree(ROOT, ["src", "drivers", "compile", "test"]);

for (const [name, { rule, bad, good }] of Object.entries(CASES)) {
  describe(name, () => {
    for (const [what, files] of Object.entries(bad)) {
      test(`notices: ${what}`, () => expect(rule(make(files))).not.toEqual([]));
    }
    test("leaves the innocent alone", () => expect(rule(make(good))).toEqual([]));
    test("holds in this tree", () => expect(rule(tree)).toEqual([]));
  });
}

describe("topLevelKnown", () => {
  test("notices a stray file", () => expect(rules.topLevelKnown(["notes.md"])).toHaveLength(1));
  test("holds in this tree", () => expect(rules.topLevelKnown(readdirSync(ROOT))).toEqual([]));
});

test("VERSION is the one of package.json", () => {
  const manifest = JSON.parse(readFileSync(`${ROOT}/package.json`, "utf8")) as { version: string };
  expect(VERSION).toBe(manifest.version);
});

describe("the rules", () => {
  test("are all tried here", () => {
    const named = Object.keys(rules).filter((name) => name !== "topLevelKnown");
    const helpers = ["functionsOf", "placeOf"];
    expect(Object.keys(CASES).sort()).toEqual(named.filter((n) => !helpers.includes(n)).sort());
  });
  test("see the whole tree", () => expect(tree.length).toBeGreaterThan(20));
});

describe("tidy-source", () => {
  test("codeOnly blanks comments, strings and regular expressions", () => {
    const text = 'a /* b */ + "c" + \'d\' + `e\nf` // g\nh = /["/]/g.test(i);';
    const code = codeOnly(text);
    expect(code).toHaveLength(text.length);
    expect(code.replace(/[^a-z]/g, "")).toBe("ahgtesti");
    expect(code.split("\n")).toHaveLength(3);
  });
  test("importsOf resolves relative targets and tells types apart", () => {
    const text =
      'import type { A } from "../b/a.ts";\nimport c from "hono";\nexport * from "./d.ts";';
    expect(importsOf("src/x/y.ts", text)).toEqual([
      { target: "src/b/a.ts", typeOnly: true },
      { target: "hono", typeOnly: false },
      { target: "src/x/d.ts", typeOnly: false },
    ]);
  });
});
