/** Socket addresses. Pure. Spec: qapi/sockets.json */
import type { InferOutput } from "valibot";
import { bool, enumeration, object, optional, str, uint16, uint32, union } from "./scalars.ts";
import type { ObjectMembers } from "./types.ts";

const inetMembers = {
  host: str,
  port: str,
  numeric: optional(bool, "Host and port are numbers, no names (default: false)"),
  to: optional(uint16, "Highest port to try; port itself is the first"),
  ipv4: optional(bool, "Whether to take IPv4 addresses"),
  ipv6: optional(bool, "Whether to take IPv6 addresses"),
  "keep-alive": optional(bool, "Send keep-alive probes (default: false)"),
  "keep-alive-count": optional(uint32, "Probes without an answer before the connection ends"),
  "keep-alive-idle": optional(uint32, "Seconds before the first probe"),
  "keep-alive-interval": optional(uint32, "Seconds between probes"),
  mptcp: optional(bool, "Use multi-path TCP (default: false)"),
} satisfies ObjectMembers;

const unixMembers = {
  path: str,
  abstract: optional(bool, "The path is a name in the abstract namespace (default: false)"),
  tight: optional(bool, "The abstract name is as long as the path (default: true)"),
} satisfies ObjectMembers;

const vsockMembers = { cid: str, port: str } satisfies ObjectMembers;
const fdMembers = { str } satisfies ObjectMembers;

const base = { type: enumeration("SocketAddressType", ["inet", "unix", "vsock", "fd"]) } as const;

/** The flat form: options of the command line, and new commands. */
export const socketAddress = union("SocketAddress", {
  base,
  tag: "type",
  branches: { inet: inetMembers, unix: unixMembers, vsock: vsockMembers, fd: fdMembers },
});
export type SocketAddress = InferOutput<typeof socketAddress>;

/** The form with members one level down: nbd-server-start, chardev-add. */
export const socketAddressLegacy = union("SocketAddressLegacy", {
  base,
  tag: "type",
  branches: {
    inet: { data: object("InetSocketAddress", inetMembers) },
    unix: { data: object("UnixSocketAddress", unixMembers) },
    vsock: { data: object("VsockSocketAddress", vsockMembers) },
    fd: { data: object("FdSocketAddress", fdMembers) },
  },
});
export type SocketAddressLegacy = InferOutput<typeof socketAddressLegacy>;

export function flattenAddress({ type, data }: SocketAddressLegacy): SocketAddress {
  return { type, ...data } as SocketAddress;
}

export function nestAddress({ type, ...data }: SocketAddress): SocketAddressLegacy {
  return { type, data } as unknown as SocketAddressLegacy;
}
