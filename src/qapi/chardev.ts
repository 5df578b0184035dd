/** Character devices. Pure. Spec: qapi/char.json */
import type { InferOutput } from "valibot";
import { bool, doc, enumeration, int, object, optional, str, union } from "./scalars.ts";
import { socketAddressLegacy } from "./sockets.ts";
import type { ObjectMembers } from "./types.ts";

/** ChardevCommon */
const commonMembers = {
  logfile: optional(str, "File that gets a copy of all output"),
  logappend: optional(bool, "Append to the log file rather than truncate it (default: false)"),
  logtimestamp: optional(bool, "Begin each line of the log with the time (default: false)"),
} satisfies ObjectMembers;

const chardevFile = object("ChardevFile", {
  ...commonMembers,
  in: optional(str, "File to read from"),
  out: doc(str, "File to write to"),
  append: optional(bool, "Append to the file rather than truncate it (default: false)"),
});

const chardevHostdev = object("ChardevHostdev", {
  ...commonMembers,
  device: doc(str, "Path of the device; of a pipe without .in and .out"),
});

const chardevSocket = object("ChardevSocket", {
  ...commonMembers,
  addr: doc(socketAddressLegacy, "Address to listen on or to connect to"),
  "tls-creds": optional(str, "Id of the TLS credentials object"),
  "tls-authz": optional(str, "Id of the authorization object for the client's certificate"),
  server: optional(bool, "Listen rather than connect (default: true)"),
  wait: optional(bool, "Wait for a first client (default: false)"),
  nodelay: optional(bool, "Switch off Nagle's algorithm (default: false)"),
  telnet: optional(bool, "Speak telnet (default: false)"),
  tn3270: optional(bool, "Speak tn3270 (default: false)"),
  websocket: optional(bool, "Speak WebSocket (default: false)"),
  "reconnect-ms": optional(
    int,
    "Milliseconds until a lost connection is tried again, 0 for never (default: 0)",
  ),
});

const chardevStdio = object("ChardevStdio", {
  ...commonMembers,
  signal: optional(bool, "Keys of the terminal raise signals (default: true)"),
});

export const chardevBackendKinds = ["file", "pipe", "socket", "null", "stdio"] as const;

/** What chardev-add and chardev-change take: one branch per kind. */
export const chardevBackend = union("ChardevBackend", {
  base: {
    type: doc(enumeration("ChardevBackendKind", chardevBackendKinds), "Kind of device"),
  },
  tag: "type",
  branches: {
    file: { data: chardevFile },
    pipe: { data: chardevHostdev },
    socket: { data: chardevSocket },
    null: { data: object("ChardevCommon", commonMembers) },
    stdio: { data: chardevStdio },
  },
});
export type ChardevBackend = InferOutput<typeof chardevBackend>;

export const chardevReturn = object("ChardevReturn", {
  pty: optional(str, "Path of the terminal of a pty"),
});

export const chardevInfo = object("ChardevInfo", {
  label: doc(str, "Id"),
  filename: doc(str, "What it is connected to"),
  "frontend-open": doc(bool, "Somebody uses it"),
});
export type ChardevInfo = InferOutput<typeof chardevInfo>;

export const chardevBackendInfo = object("ChardevBackendInfo", { name: doc(str, "Kind") });
