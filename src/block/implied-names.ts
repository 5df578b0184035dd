/**
 * What a name in an image comes to as options: a path beside the image, or "json:". Pure.
 * Thread: any.
 * Spec: QEMU block.c bdrv_fill_options(), path_combine(), path_has_protocol()
 */
import { invalid, OutportError } from "../util/error.ts";

type Wire = Readonly<Record<string, unknown>>;

export interface ImpliedName {
  readonly filename: string;
  /** Driver that the image names; null: none, "file": without a format. */
  readonly format: string | null;
  /** Of the image that holds the name; undefined: nowhere in particular. */
  readonly imageFilename: string | undefined;
  readonly isBlockDevice: (path: string) => boolean;
}

/** Throws OutportError. */
export function impliedOptions(name: ImpliedName): Wire {
  const { filename, format, isBlockDevice } = name;
  if (filename.startsWith("json:")) return withFormat(parseJsonName(filename), format);
  const path = impliedPath(name);
  const file = { driver: isBlockDevice(path) ? "host_device" : "file", filename: path };
  if (format === null) {
    // QSD differs: it guesses by what is in the file, which whoever writes to it could choose.
    throw invalid(`The format of '${path}' is not named, and is not guessed`);
  }
  return format === "file" || format === "host_device" ? file : { driver: format, file };
}

/** Throws OutportError. */
export function impliedPath({
  filename,
  imageFilename,
}: Pick<ImpliedName, "filename" | "imageFilename">): string {
  const protocol = /^([^/:]*):/.exec(filename)?.[1];
  if (protocol !== undefined && protocol !== "file") {
    throw new OutportError("unsupported", `Unknown protocol '${protocol}'`);
  }
  const path = protocol === undefined ? filename : filename.slice("file:".length);
  if (path.startsWith("/") || protocol !== undefined || imageFilename === undefined) return path;
  return imageFilename.slice(0, imageFilename.lastIndexOf("/") + 1) + path;
}

function withFormat(options: Wire, format: string | null): Wire {
  return options.driver === undefined && format !== null ? { driver: format, ...options } : options;
}

function parseJsonName(filename: string): Wire {
  let value: unknown;
  try {
    value = JSON.parse(filename.slice("json:".length));
  } catch {
    throw invalid("Could not parse the JSON options");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw invalid("Invalid JSON object given");
  }
  return nested(value as Wire);
}

/** "file.driver": members of members. */
function nested(flat: Wire): Wire {
  const result: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(flat)) {
    let at = result;
    const path = name.split(".");
    const last = path.pop()!;
    for (const step of path) {
      const below = Object.hasOwn(at, step) ? at[step] : undefined;
      const next = typeof below === "object" && below !== null ? below : {};
      Object.defineProperty(at, step, { value: next, enumerable: true, configurable: true });
      at = next as Record<string, unknown>;
    }
    Object.defineProperty(at, last, { value, enumerable: true, configurable: true });
  }
  return result;
}
