/** Commands of the monitor itself. Thread: main. Spec: qapi/control.json, qapi/misc.json */
import { defineCommand } from "../../qapi/define.ts";
import { arrayOf, enumeration, int, nothing, object, optional, str } from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";
import { BUILD, VERSION } from "../../util/version.ts";

/** The release whose behaviour this is; tools decide by it what they may use. */
const QEMU_VERSION = { micro: 3, minor: 1, major: 11 };

const versionInfo = object("VersionInfo", {
  qemu: object("VersionTriple", { major: int, minor: int, micro: int }),
  package: str,
});

export function qemuVersion() {
  const build = BUILD === "" ? "" : ` (${BUILD})`;
  return { qemu: QEMU_VERSION, package: `outport ${VERSION}${build}` };
}

export interface MiscParts {
  /** Every command there is, these included. */
  readonly commands: () => readonly AnyCommand[];
  /** Resolves when exports are closed; the process ends after the reply. */
  readonly quit: () => Promise<void>;
}

export function miscCommands({ commands, quit }: MiscParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "qmp_capabilities",
      documentation: "Ends the negotiation, after which the monitor takes other commands.",
      errors: [],
      arguments: object("q_obj_qmp_capabilities-arg", {
        enable: optional(
          arrayOf(enumeration("QMPCapability", ["oob"])),
          "Capabilities of the greeting to switch on",
        ),
      }),
      returns: nothing,
      handler({ enable }, { monitor }) {
        monitor?.negotiate(enable ?? []);
        return {};
      },
    }),
    defineCommand({
      name: "query-version",
      documentation: "The QEMU release that this behaves as, and in package what it is.",
      errors: [],
      arguments: nothing,
      returns: versionInfo,
      handler: qemuVersion,
    }),
    defineCommand({
      name: "query-commands",
      documentation: "Names of all commands.",
      errors: [],
      arguments: nothing,
      returns: arrayOf(object("CommandInfo", { name: str })),
      handler: () => commands().map(({ name }) => ({ name })),
    }),
    defineCommand({
      name: "quit",
      documentation: "Closes everything in order and ends the process.",
      errors: [],
      arguments: nothing,
      returns: nothing,
      async handler() {
        await quit();
        return {};
      },
    }),
  ];
}
