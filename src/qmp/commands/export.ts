/** Commands on the NBD server and on exports. Thread: main. Spec: qapi/block-export.json */
import type { GenericSchema } from "valibot";
import { blockExportCommonMembers, type ExportType } from "../../exports/export.ts";
import type { BlockExportInfo, NbdServerAddOptions } from "../../exports/manager.ts";
import type { NbdServerStarter, NbdServerStartOptions } from "../../exports/nbd/index.ts";
import { defineCommand, defineEvent } from "../../qapi/define.ts";
import {
  arrayOf,
  bool,
  doc,
  enumeration,
  nothing,
  object,
  optional,
  str,
  uint32,
  union,
} from "../../qapi/scalars.ts";
import { flattenAddress, socketAddress, socketAddressLegacy } from "../../qapi/sockets.ts";
import type { AnyCommand } from "../../qapi/types.ts";

type Wire = Readonly<Record<string, unknown>>;

const nbdServerBase = {
  "handshake-max-seconds": optional(
    uint32,
    "Seconds until a client must have chosen an export, 0 for no limit (default: 10)",
  ),
  "tls-creds": optional(str, "Id of the TLS credentials object"),
  "tls-authz": optional(str, "Id of the authorization object for the client's certificate"),
  "max-connections": optional(uint32, "Most connections at a time, 0 for no limit (default: 100)"),
};

/** What --nbd-server takes. */
export const nbdServerOptions = object("NbdServerOptions", {
  ...nbdServerBase,
  addr: socketAddress,
});

/** What the commands need of the exports manager. */
export interface ExportCommands {
  /** `fdNumbers`: an address may name descriptors by number. */
  add(options: Wire, fdNumbers: boolean): Promise<void>;
  delete(id: string, mode?: "safe" | "hard"): Promise<void>;
  addLegacyNbd(options: NbdServerAddOptions): Promise<void>;
  deleteLegacyNbd(id: string, mode?: "safe" | "hard"): Promise<void>;
  query(): BlockExportInfo[];
}

/** What the commands need of the NBD server. */
export interface NbdServerCommands {
  readonly running: boolean;
  start(options: NbdServerStartOptions, starter: NbdServerStarter): Promise<void>;
  /** One more listening address for the server that runs. */
  listenAlso(options: NbdServerStartOptions): Promise<void>;
  /** Closes its exports first. */
  stop(): Promise<void>;
}

export const exportEvents = [
  defineEvent({
    name: "BLOCK_EXPORT_DELETED",
    documentation: "An export is gone, and its id is free.",
    data: object("q_obj_BLOCK_EXPORT_DELETED-arg", { id: str }),
  }),
] as const;

export interface ExportParts {
  readonly exports: ExportCommands;
  readonly nbdServer: NbdServerCommands;
  readonly types: readonly ExportType[];
}

export function exportCommands(parts: ExportParts): readonly AnyCommand[] {
  return [...nbdServerCommands(parts), ...legacyNbdCommands(parts), ...blockExportCommands(parts)];
}

function nbdServerCommands({ nbdServer }: ExportParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "nbd-server-start",
      documentation: "Starts the NBD server on an address.",
      errors: ["The server is running already", "The address cannot be listened on"],
      arguments: object("q_obj_nbd-server-start-arg", {
        ...nbdServerBase,
        addr: socketAddressLegacy,
      }),
      returns: nothing,
      async handler({ addr, ...rest }, { commandLine }) {
        const options = { ...rest, addr: flattenAddress(addr) };
        // QSD differs: it takes --nbd-server once; here each further one is a further address.
        if (commandLine === true && nbdServer.running) await nbdServer.listenAlso(options);
        else await nbdServer.start(options, commandLine === true ? "command-line" : "monitor");
        return {};
      },
    }),
    defineCommand({
      name: "nbd-server-stop",
      documentation: "Closes every NBD export, then stops the NBD server.",
      errors: ["The server is not running"],
      arguments: nothing,
      returns: nothing,
      async handler() {
        await nbdServer.stop();
        return {};
      },
    }),
  ];
}

const removeMode = enumeration("BlockExportRemoveMode", ["safe", "hard"]);
const REMOVE_MODE_DOC = "safe refuses while a client is connected; hard drops it (default: safe)";

/** What block-export-add and block-export-del have replaced. */
function legacyNbdCommands({ exports }: ExportParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "nbd-server-add",
      documentation: "Makes a block node accessible over NBD; see block-export-add.",
      errors: ["The server is not running", "The name is taken", "There is no such node"],
      features: ["deprecated"],
      arguments: object("NbdServerAddOptions", {
        name: optional(str, "Name and id of the export (default: device)"),
        description: optional(str, "Free-form description, up to 4096 bytes"),
        device: doc(str, "Node to export"),
        writable: optional(bool, "Clients may write, if the node can be written (default: false)"),
        bitmap: optional(str, "Dirty bitmap that clients may read as a metadata context"),
      }),
      returns: nothing,
      async handler(options) {
        await exports.addLegacyNbd(options);
        return {};
      },
    }),
    defineCommand({
      name: "nbd-server-remove",
      documentation: "Ends an NBD export; see block-export-del.",
      errors: ["There is no such export", "It is no NBD export", "It has clients"],
      features: ["deprecated"],
      arguments: object("q_obj_nbd-server-remove-arg", {
        name: doc(str, "Id of the export"),
        mode: optional(removeMode, REMOVE_MODE_DOC),
      }),
      returns: nothing,
      async handler({ name, mode }) {
        await exports.deleteLegacyNbd(name, mode);
        return {};
      },
    }),
  ];
}

/** BlockExportOptions: one branch per export type. */
function blockExportOptions(types: readonly ExportType[]): GenericSchema<unknown, Wire> {
  const options: GenericSchema = union("BlockExportOptions", {
    base: { type: exportTypeEnum(types), ...blockExportCommonMembers },
    tag: "type",
    branches: Object.fromEntries(types.map(({ name, members }) => [name, members])),
  });
  return options as GenericSchema<unknown, Wire>;
}

function exportTypeEnum(types: readonly ExportType[]) {
  return enumeration(
    "BlockExportType",
    types.map(({ name }) => name),
  );
}

function blockExportCommands({ exports, types }: ExportParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "block-export-add",
      documentation: "Makes a block node accessible to clients.",
      errors: ["The id is in use", "There is no such node", "The node is read-only"],
      arguments: blockExportOptions(types),
      returns: nothing,
      async handler(options, { commandLine = false }) {
        await exports.add(options, commandLine);
        return {};
      },
    }),
    defineCommand({
      name: "block-export-del",
      documentation: "Asks an export to end; the event BLOCK_EXPORT_DELETED tells when it has.",
      errors: ["There is no such export", "mode is safe and a client is connected"],
      arguments: object("q_obj_block-export-del-arg", {
        id: str,
        mode: optional(removeMode, REMOVE_MODE_DOC),
      }),
      returns: nothing,
      async handler({ id, mode }) {
        await exports.delete(id, mode);
        return {};
      },
    }),
    defineCommand({
      name: "query-block-exports",
      documentation: "Every export, the newest first.",
      errors: [],
      arguments: nothing,
      returns: arrayOf(
        object("BlockExportInfo", {
          id: str,
          type: exportTypeEnum(types),
          "node-name": str,
          "shutting-down": bool,
        }),
      ),
      handler: () => exports.query(),
    }),
  ];
}
