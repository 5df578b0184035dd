/**
 * The object kind main-loop: properties of the built-in thread. Thread: main.
 * Spec: qapi/qom.json MainLoopProperties; QEMU util/main-loop.c
 */
import { OutportError } from "../../util/error.ts";
import type { ObjectKind, QomType } from "../registry.ts";
import {
  baseDefaults,
  baseMembers,
  type Counts,
  checkCount,
  checkThreadPool,
  eventLoopBase,
} from "./base.ts";

const CHECK_ORDER = ["aio-max-batch", "thread-pool-max", "thread-pool-min"];

const type: QomType = { name: "main-loop", parent: eventLoopBase, properties: [] };

export function mainLoopKind(): ObjectKind {
  let exists = false;
  return {
    name: "main-loop",
    members: baseMembers,
    type,
    validate(options) {
      for (const name of CHECK_ORDER) {
        if (options[name] !== undefined) checkCount(name, options[name] as number);
      }
      checkThreadPool({ ...baseDefaults, ...(options as Counts) });
    },
    async create(id, options) {
      let counts = { ...baseDefaults, ...(options as Counts) };
      if (exists) throw new OutportError("in-use", "only one main-loop instance allowed");
      exists = true;
      return {
        type,
        get: (name) => counts[name],
        set(name, value) {
          checkCount(name, value as number);
          const changed = { ...counts, [name]: value as number };
          checkThreadPool(changed);
          counts = changed;
        },
        async delete() {
          throw new OutportError("in-use", `Deleting main loop '${id}' is not supported`);
        },
      };
    },
  };
}
