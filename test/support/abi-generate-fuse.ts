/**
 * Makes test/unit/abi/fuse.json: what linux/fuse.h says about the names that
 * src/abi/{fuse,fuse-file,fuse-passthrough}.ts export. Run where there is a C compiler, with
 * `bun test/support/abi-generate-fuse.ts [FOLDER]`, where FOLDER/linux/fuse.h is of protocol 7.45
 * or later if the host's is not; the tests only read its result.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fuse from "../../src/abi/fuse.ts";
import * as file from "../../src/abi/fuse-file.ts";
import * as passthrough from "../../src/abi/fuse-passthrough.ts";

/** Structures whose fields our names end with; the longer names first. */
const STRUCTURES = [
  "NOTIFY_INVAL_INODE_OUT",
  "COPY_FILE_RANGE_IN",
  "FALLOCATE_IN",
  "BACKING_MAP",
  "SETATTR_IN",
  "STATFS_OUT",
  "OUT_HEADER",
  "IN_HEADER",
  "LSEEK_OUT",
  "STATX_OUT",
  "WRITE_OUT",
  "ATTR_OUT",
  "INIT_OUT",
  "LSEEK_IN",
  "OPEN_OUT",
  "WRITE_IN",
  "INIT_IN",
  "KSTATFS",
  "OPEN_IN",
  "READ_IN",
  "STATX",
  "ATTR",
];
/** Of the header itself, though they look like fields. */
const NAMES = new Set(["FUSE_STATX", "FUSE_COMPAT_22_INIT_OUT_SIZE"]);
/** Flags of the second word. */
const SECOND = /_2$/;

function expressionOf(name: string): string {
  if (name === "FUSE_FH_SIZE") return "sizeof(((struct fuse_release_in *)0)->fh)";
  if (SECOND.test(name)) return `${name.replace(SECOND, "")} >> 32`;
  const found = STRUCTURES.find((structure) => name.startsWith(`FUSE_${structure}_`));
  if (found === undefined || NAMES.has(name)) return name;
  const type = `struct fuse_${found.toLowerCase()}`;
  const field = name.slice(`FUSE_${found}_`.length).toLowerCase();
  if (field === "size") return `sizeof(${type})`;
  return `offsetof(${type}, ${field === "size_of" ? "size" : field})`;
}

const names = Object.keys({ ...fuse, ...file, ...passthrough });
const folder = mkdtempSync(join(tmpdir(), "abi-"));
try {
  const lines = names.map((name) => {
    return `printf("${name} %lld\\n", (long long)(${expressionOf(name)}));`;
  });
  const headers = ["stddef.h", "stdio.h", "sys/ioctl.h", "linux/fuse.h"];
  const includes = headers.map((name) => `#include <${name}>`);
  writeFileSync(join(folder, "abi.c"), [...includes, "int main(void) {", ...lines, "}"].join("\n"));
  const from = process.argv[2] === undefined ? [] : ["-I", process.argv[2]];
  execFileSync("cc", ["-w", ...from, "-o", join(folder, "abi"), join(folder, "abi.c")]);
  const output = execFileSync(join(folder, "abi"), { encoding: "utf8" }).trim();
  const values = output.split("\n").map((line) => line.split(" ") as [string, string]);
  const json = Object.fromEntries(values.map(([name, value]) => [name, Number(value)]));
  const target = new URL("../unit/abi/fuse.json", import.meta.url);
  writeFileSync(target, `${JSON.stringify(json, null, 2)}\n`);
} finally {
  rmSync(folder, { recursive: true });
}
