/**
 * What each option of the command line does. Thread: main.
 * Spec: QEMU storage-daemon/qemu-storage-daemon.c, docs/tools/qemu-storage-daemon.rst
 */
import type { GenericSchema, InferOutput } from "valibot";
import type { Chardevs } from "../chardev/manager.ts";
import type { ObjectKind } from "../objects/registry.ts";
import { check, type InputMode } from "../qapi/check.ts";
import { bool, enumeration, object, optional, str } from "../qapi/scalars.ts";
import { nestAddress } from "../qapi/sockets.ts";
import { nbdServerOptions } from "../qmp/commands/export.ts";
import type { Dispatcher } from "../qmp/dispatcher.ts";
import { parseJson } from "../qmp/json-stream.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import type { Option } from "./arguments.ts";
import { parseChardevOption } from "./chardev-options.ts";
import type { Answer } from "./command-line.ts";
import { parseKeyval, parseKeyvalOrHelp } from "./keyval.ts";
import { objectHelp } from "./object-help.ts";
import { warnOfShortForm } from "./option-error.ts";
import type { Tracing } from "./tracing.ts";

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
  readonly tracing: Tracing;
  readonly objectKinds: readonly ObjectKind[];
  /** For what is understood, yet not well written. */
  readonly log: Log;
  readonly setPidfile: (path: string) => void;
  /** The quick start. */
  readonly serveImage: (path: string) => Promise<void>;
  /** For a monitor that is given none. */
  readonly makeMonitorId: () => string;
}

/** Does one option; returns the answer when that was a question. Throws an OutportError. */
export async function applyOption(
  option: Option,
  targets: OptionTargets,
): Promise<Answer | undefined> {
  const { dispatcher } = targets;
  const run = (command: string, impliedKey: string): Promise<unknown> => {
    const { value, mode } = parseOption(option.value, impliedKey);
    return dispatcher.execute(command, value, { commandLine: true }, mode);
  };
  switch (option.name) {
    case "blockdev":
      await run("blockdev-add", "driver");
      return undefined;
    case "object": {
      const answer = objectHelpIfAsked(option.value, targets.objectKinds);
      if (answer === undefined) await run("object-add", "qom-type");
      return answer;
    }
    case "export":
      await run("block-export-add", "type");
      return undefined;
    case "nbd-server": {
      const { addr, ...rest } = checkOption(nbdServerOptions, option.value);
      const args = { ...rest, addr: nestAddress(addr) };
      await dispatcher.execute("nbd-server-start", args, { commandLine: true });
      return undefined;
    }
    case "chardev":
      return await addChardev(option, targets);
    case "monitor":
      await addMonitor(checkOption(monitorOptions, option.value, "chardev"), targets);
      return undefined;
    case "pidfile":
      targets.setPidfile(option.value);
      return undefined;
    case "trace":
      return await targets.tracing.add(option);
    case "image":
      await targets.serveImage(option.value);
      return undefined;
    case "stray":
      throw new OutportError("invalid", "Unexpected argument");
    default:
      // The others were answered, or have taken effect, before anything started.
      return undefined;
  }
}

function objectHelpIfAsked(text: string, kinds: readonly ObjectKind[]): Answer | undefined {
  if (text.startsWith("{")) return undefined;
  const { value, help } = parseKeyvalOrHelp(text, "qom-type");
  return help ? { text: objectHelp(kinds, value["qom-type"]), exitCode: 0 } : undefined;
}

async function addChardev(
  { value, text }: Option,
  { chardevs, log }: OptionTargets,
): Promise<Answer | undefined> {
  const request = parseChardevOption(value, warnOfShortForm(log, text));
  if ("answer" in request) return request.answer;
  await chardevs.add(request.id, request.backend, "command-line");
  return undefined;
}

/** A monitor is an object like others. */
async function addMonitor(
  { mode, id, ...options }: InferOutput<typeof monitorOptions>,
  { dispatcher, makeMonitorId }: OptionTargets,
): Promise<void> {
  if (mode === "readline") throw new OutportError("unsupported", "Only QMP is supported");
  const args = { "qom-type": "monitor-qmp", id: id ?? makeMonitorId(), ...options };
  await dispatcher.execute("object-add", args, { commandLine: true });
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
