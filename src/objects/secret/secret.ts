/** The object kind secret. Thread: main. Spec: qapi/crypto.json SecretProperties */
import { optional, str } from "../../qapi/scalars.ts";
import { readFileContent } from "../../runtime/file-content.ts";
import type { Linux } from "../../runtime/linux.ts";
import { OutportError } from "../../util/error.ts";
import type { ObjectKind, QomType } from "../registry.ts";
import { commonMembers, makeSecret, secretCommon } from "./common.ts";

const type: QomType = {
  name: "secret",
  parent: secretCommon,
  properties: [
    { name: "file", type: "string", schema: str },
    // QSD differs: it tells the secret to everybody who asks.
    { name: "data", type: "string", schema: str, writeOnly: true },
  ],
};

export function secretKind(linux: Linux): ObjectKind {
  return {
    name: "secret",
    members: {
      ...commonMembers,
      data: optional(str, "The secret itself"),
      file: optional(str, "File that holds the secret; read once, now"),
    },
    type,
    async create(id, options, objects) {
      const { data, file, ...rest } = options as { data?: string; file?: string };
      const written = load(linux, data, file);
      return makeSecret({ id, type, options: { ...rest, file: file ?? "" }, objects, written });
    },
  };
}

function load(linux: Linux, data?: string, file?: string): Uint8Array<ArrayBuffer> {
  if (file !== undefined) {
    if (data !== undefined) {
      throw new OutportError("invalid", "'file' and 'data' are mutually exclusive");
    }
    return read(linux, file);
  }
  if (data !== undefined) return new TextEncoder().encode(data);
  throw new OutportError("invalid", "Either 'file' or 'data' must be provided");
}

function read(linux: Linux, file: string): Uint8Array<ArrayBuffer> {
  try {
    return readFileContent(linux, file);
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    throw new OutportError(error.kind, `Unable to read ${file}: ${error.message}`);
  }
}
