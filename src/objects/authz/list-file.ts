/**
 * The object kind authz-listfile: rules in a file, taken anew when it changes. Thread: main.
 * Spec: qapi/authz.json AuthZListFileProperties; QEMU authz/listfile.c
 */
import { check } from "../../qapi/check.ts";
import { bool, doc, object, optional, str } from "../../qapi/scalars.ts";
import { readFileContent } from "../../runtime/file-content.ts";
import type { FileStatus, Linux } from "../../runtime/linux.ts";
import { OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { ObjectKind, QomType, UserObject } from "../registry.ts";
import { authz } from "./base.ts";
import { isAllowedBy, listMembers, type Policy, type Rules } from "./rules.ts";

export interface ListFileParts {
  readonly linux: Linux;
  /** Throws an OutportError. */
  readonly parseJson: (text: string) => unknown;
  readonly log: Log;
}

/** The clock of a file system may stand still for so long: changes may not show. */
const CLOCK_TICK_US = 50_000;

const type: QomType = {
  // Not the name of the kind, neither in QSD.
  name: "authz-list-file",
  parent: authz,
  userCreatable: true,
  properties: [
    { name: "filename", type: "string", schema: str },
    { name: "refresh", type: "bool", schema: bool },
  ],
};

// QSD differs: its schema and its types call this kind by different names, so that it has none.
export function authzListFileKind(parts: ListFileParts): ObjectKind {
  return {
    name: "authz-listfile",
    members: {
      filename: doc(str, "Absolute path of a JSON file with the members of authz-list"),
      refresh: optional(bool, "Take the file anew when it changes (default: true)"),
    },
    type,
    async create(_id, options) {
      const { filename, refresh = true } = options as { filename: string; refresh?: boolean };
      const list = new ListFile(parts, filename, refresh);
      // As in QSD, the properties may change afterwards; the list does not.
      const values: Record<string, unknown> = { filename, refresh };
      return {
        type,
        get: (name) => values[name],
        set(name, value) {
          values[name] = value;
        },
        isAllowed: (identity) => list.isAllowed(identity),
        async delete() {},
      } satisfies UserObject;
    },
  };
}

interface List {
  readonly policy: Policy;
  readonly rules: Rules;
}

class ListFile {
  #parts: ListFileParts;
  #path: string;
  #refresh: boolean;
  /** Undefined when the file is not usable: nobody comes in. */
  #list: List | undefined;
  /** Of the file when it was read; undefined when it may change without a sign. */
  #version: string | undefined;

  constructor(parts: ListFileParts, path: string, refresh: boolean) {
    this.#parts = parts;
    this.#path = path;
    this.#refresh = refresh;
    this.#version = this.#look();
    this.#list = this.#load();
    if (refresh && !path.includes("/")) {
      throw new OutportError("invalid", "Filename must be an absolute path");
    }
  }

  isAllowed(identity: string): boolean {
    if (this.#refresh) this.#reload();
    return this.#list !== undefined && isAllowedBy(this.#list.rules, this.#list.policy, identity);
  }

  #reload(): void {
    const status = this.#parts.linux.stat(this.#path);
    // As in QSD, rules outlive their file.
    if (typeof status === "number") return;
    const version = this.#look();
    if (version !== undefined && version === this.#version) return;
    this.#version = version;
    try {
      this.#list = this.#load();
    } catch (error) {
      this.#list = undefined;
      this.#parts.log("error", error instanceof Error ? error.message : String(error));
    }
  }

  #look(): string | undefined {
    const status = this.#parts.linux.stat(this.#path);
    if (typeof status === "number") return undefined;
    const isFresh = this.#parts.linux.realTimeUs() - status.changeTimeUs < CLOCK_TICK_US;
    return isFresh ? undefined : versionOf(status);
  }

  #load(): List {
    const value = this.#parts.parseJson(this.#read());
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new OutportError("invalid", `File '${this.#path}' must contain a JSON object`);
    }
    for (const name of Object.keys(value)) {
      if (!Object.hasOwn(listMembers, name)) {
        throw new OutportError("invalid", `Property 'authz-list.${name}' not found`);
      }
    }
    const { policy = "deny", rules = [] } = check(object("", listMembers), value);
    return { policy, rules };
  }

  #read(): string {
    try {
      return new TextDecoder().decode(readFileContent(this.#parts.linux, this.#path));
    } catch (error) {
      if (!(error instanceof OutportError)) throw error;
      throw new OutportError(error.kind, `Unable to read '${this.#path}': ${error.message}`);
    }
  }
}

function versionOf({ dev, ino, bytes, changeTimeUs }: FileStatus): string {
  return [dev, ino, bytes, changeTimeUs].join();
}
