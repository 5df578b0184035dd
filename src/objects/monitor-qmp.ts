/** The object kind monitor-qmp. Thread: main. Spec: qapi/qom.json MonitorQMPProperties */
import type { Chardev, Frontend } from "../chardev/chardev.ts";
import { bool, doc, enumeration, optional, str } from "../qapi/scalars.ts";
import { OutportError } from "../util/error.ts";
import type { ObjectKind, QomType } from "./registry.ts";

/** Changed by qom-set while the monitor runs. */
export interface MonitorSettings {
  chardev: string;
  pretty: boolean;
  "close-action": "none" | "delete";
}

export interface MonitorQmpParts {
  readonly chardevs: { get(id: string): Chardev };
  readonly makeMonitor: (id: string, settings: Readonly<MonitorSettings>) => Frontend;
}

const closeAction = enumeration("MonitorQMPCloseAction", ["none", "delete"]);

const members = {
  chardev: doc(str, "Character device that clients come in by"),
  pretty: optional(bool, "Format JSON over several lines (default: false)"),
  "close-action": optional(
    closeAction,
    "What happens when a client leaves: nothing, or the monitor is deleted (default: none)",
  ),
} as const;

const monitor: QomType = {
  name: "monitor",
  abstract: true,
  userCreatable: true,
  properties: [{ name: "chardev", type: "string", schema: str }],
};

const type: QomType = {
  name: "monitor-qmp",
  parent: monitor,
  properties: [
    { name: "pretty", type: "bool", schema: bool },
    { name: "close-action", type: "MonitorQMPCloseAction", schema: closeAction },
  ],
};

export function monitorQmpKind({ chardevs, makeMonitor }: MonitorQmpParts): ObjectKind {
  return {
    name: "monitor-qmp",
    members,
    type,
    async create(id, options) {
      const settings: MonitorSettings = {
        pretty: false,
        "close-action": "none",
        ...(options as Pick<MonitorSettings, "chardev"> & Partial<MonitorSettings>),
      };
      const chardev = chardevs.get(settings.chardev);
      chardev.attach(makeMonitor(id, settings));
      return {
        type,
        get: (property) => settings[property as keyof MonitorSettings],
        set(property, value) {
          // The device is chosen once: its name may change, without effect, as in QSD.
          Object.assign(settings, { [property]: value });
        },
        async delete({ monitor }) {
          if (monitor?.id === id) {
            throw new OutportError("in-use", "Cannot delete the current QMP monitor");
          }
          chardev.detach();
        },
      };
    },
  };
}
