/**
 * What is mounted where, as the kernel tells a process. Thread: any.
 * Spec: proc_pid_mountinfo(5)
 */

/** One line. */
export interface Mount {
  readonly id: number;
  /** Major × 2^20 + minor, as in FileStatus. */
  readonly dev: number;
  /** Path in the mounted file system that shows here: "/" unless it is a bind mount of a part. */
  readonly root: string;
  /** For processes with this one's root directory. */
  readonly path: string;
  readonly type: string;
  readonly source: string;
  /** Of the file system, as it shows them. */
  readonly options: readonly string[];
}

const MAJOR = 2 ** 20;
/** Fields before the optional ones, and after the "-" that ends those. */
const FIELDS_BEFORE = 6;
const FIELDS_AFTER = 3;

/** Lines that make no sense are left out. */
export function parseMountinfo(text: string): Mount[] {
  return text.split("\n").flatMap((line) => parseLine(line) ?? []);
}

function parseLine(line: string): Mount | undefined {
  const fields = line.split(" ");
  const separator = fields.indexOf("-", FIELDS_BEFORE);
  if (separator < 0 || fields.length < separator + 1 + FIELDS_AFTER) return undefined;
  const [id = "", , device = "", root = "", path = ""] = fields;
  const [type = "", source = "", options = ""] = fields.slice(separator + 1);
  const [, major, minor] = /^(\d{1,4}):(\d{1,7})$/.exec(device) ?? [];
  if (!/^\d{1,10}$/.test(id) || major === undefined) return undefined;
  return {
    id: Number(id),
    dev: Number(major) * MAJOR + Number(minor),
    root: unescapeOctal(root),
    path: unescapeOctal(path),
    type: unescapeOctal(type),
    source: unescapeOctal(source),
    options: options.split(","),
  };
}

/** Blanks, newlines and backslashes are shown in octal; bytes beyond ASCII are as they are. */
function unescapeOctal(text: string): string {
  return text.replaceAll(/\\([0-3][0-7]{2})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}
