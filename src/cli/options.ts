/**
 * What each option of the command line does. Thread: main.
 * Spec: QEMU storage-daemon/qemu-storage-daemon.c, docs/tools/qemu-storage-daemon.rst
 */
import type { GenericSchema, InferOutput } from "valibot";
import { check, type InputMode } from "../qapi/check.ts";
import { bool, enumeration, object, optional, str } from "../qapi/scalars.ts";
import { nestAddress } from "../qapi/sockets.ts";
import { nbdServerOptions } from "../qmp/commands/export.ts";
import type { Dispatcher } from "../qmp/dispatcher.ts";
import { parseJson } from "../qmp/json-stream.ts";
import { OutportError } from "../util/error.ts";
import type { Option } from "./arguments.ts";
import type { Chardevs } from "./chardevs.ts";
import { parseKeyval } from "./keyval.ts";

/** What --monitor takes. Spec: qapi/control.json MonitorOptions */
const monitorOptions = object("MonitorOptions", {
  id: optional(str, "Name of the monitor"),
  mode: optional(enumeration("MonitorMode", ["readline", "control"]), "control (the default)"),
  pretty: optional(bool, "Format JSON over several lines (default: false)"),
  chardev: str,
});

export interface OptionTargets {
  readonly dispatcher: Dispatcher;
  readonly chardevs: Chardevs;
  readonly setPidfile: (path: string) => void;
}

/** Does one option. Throws an OutportError. */
export async function applyOption(option: Option, targets: OptionTargets): Promise<void> {
  const { dispatcher, chardevs } = targets;
  const run = (command: string, impliedKey: string): Promise<unknown> => {
    const { value, mode } = parseOption(option.value, impliedKey);
    return dispatcher.execute(command, value, { commandLine: true }, mode);
  };
  switch (option.name) {
    case "blockdev":
      await run("blockdev-add", "driver");
      return;
    case "object":
      await run("object-add", "qom-type");
      return;
    case "export":
      await run("block-export-add", "type");
      return;
    case "nbd-server": {
      const { addr, ...rest } = checkOption(nbdServerOptions, option.value);
      const args = { ...rest, addr: nestAddress(addr) };
      await dispatcher.execute("nbd-server-start", args, { commandLine: true });
      return;
    }
    case "chardev":
      await chardevs.add(option.value);
      return;
    case "monitor":
      addMonitor(checkOption(monitorOptions, option.value, "chardev"), chardevs);
      return;
    case "pidfile":
      targets.setPidfile(option.value);
      return;
    case "help":
    case "version":
      // Answered before anything starts.
      return;
  }
}

function addMonitor(options: InferOutput<typeof monitorOptions>, chardevs: Chardevs): void {
  if (options.mode === "readline") throw new OutportError("unsupported", "Only QMP is supported");
  chardevs.get(options.chardev).attachMonitor(options.pretty ?? false);
}

function checkOption<Schema extends GenericSchema>(
  schema: Schema,
  text: string,
  impliedKey?: string,
): InferOutput<Schema> {
  const { value, mode } = parseOption(text, impliedKey);
  return check(schema, value, mode);
}

/** JSON when it looks like an object, else key=value. */
function parseOption(text: string, impliedKey?: string): { value: unknown; mode: InputMode } {
  if (text.startsWith("{")) return { value: parseJson(text), mode: "json" };
  return { value: parseKeyval(text, impliedKey), mode: "keyval" };
}
