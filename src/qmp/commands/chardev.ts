/** Commands on character devices. Thread: main. Spec: qapi/char.json */
import {
  type ChardevBackend,
  type ChardevInfo,
  chardevBackend,
  chardevBackendInfo,
  chardevBackendKinds,
  chardevInfo,
  chardevReturn,
} from "../../qapi/chardev.ts";
import { defineCommand } from "../../qapi/define.ts";
import { arrayOf, doc, nothing, object, str } from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";

/** What the commands need of the character devices. */
export interface ChardevCommands {
  add(id: string, backend: ChardevBackend, origin: "monitor"): Promise<void>;
  change(id: string, backend: ChardevBackend): Promise<void>;
  remove(id: string): void;
  sendBreak(id: string): void;
  query(): ChardevInfo[];
}

const byId = { id: doc(str, "Id of the device") };
const backend = doc(chardevBackend, "What it is connected to");

export function chardevCommands(chardevs: ChardevCommands): readonly AnyCommand[] {
  return [...changingCommands(chardevs), ...queryCommands(chardevs)];
}

function changingCommands(chardevs: ChardevCommands): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "chardev-add",
      documentation: "Makes a character device.",
      errors: ["The id is taken", "The file or socket cannot be opened"],
      arguments: object("q_obj_chardev-add-arg", { id: doc(str, "Id of the device"), backend }),
      returns: chardevReturn,
      async handler(args) {
        await chardevs.add(args.id, args.backend, "monitor");
        return {};
      },
    }),
    defineCommand({
      name: "chardev-change",
      documentation: "Puts another device in the place of one.",
      errors: ["There is no such device", "It is in use", "The new one cannot be opened"],
      arguments: object("q_obj_chardev-change-arg", { id: doc(str, "Id of the device"), backend }),
      returns: chardevReturn,
      async handler(args) {
        await chardevs.change(args.id, args.backend);
        return {};
      },
    }),
    defineCommand({
      name: "chardev-remove",
      documentation: "Closes a character device.",
      errors: ["There is no such device", "It is in use"],
      arguments: object("q_obj_chardev-remove-arg", byId),
      returns: nothing,
      handler({ id }) {
        chardevs.remove(id);
        return {};
      },
    }),
    defineCommand({
      name: "chardev-send-break",
      documentation: "Sends a break to a character device; what is no serial line ignores it.",
      errors: ["There is no such device"],
      arguments: object("q_obj_chardev-send-break-arg", byId),
      returns: nothing,
      handler({ id }) {
        chardevs.sendBreak(id);
        return {};
      },
    }),
  ];
}

function queryCommands(chardevs: ChardevCommands): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "query-chardev",
      documentation: "All character devices.",
      errors: [],
      arguments: nothing,
      returns: arrayOf(chardevInfo),
      handler: () => chardevs.query(),
    }),
    defineCommand({
      name: "query-chardev-backends",
      documentation: "Kinds of character devices that there are.",
      errors: [],
      arguments: nothing,
      returns: arrayOf(chardevBackendInfo),
      handler: () => chardevBackendKinds.map((name) => ({ name })),
    }),
  ];
}
