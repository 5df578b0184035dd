/**
 * Opens socket devices: listens, or connects. Thread: main.
 * Spec: QEMU chardev/char-socket.c qmp_chardev_validate_socket(), util/qemu-sockets.c
 */
import { AF_UNIX, AF_VSOCK, SO_TYPE, SOCK_STREAM, SOL_SOCKET } from "../abi/linux-socket.ts";
import type { ListenAddress } from "../iothread/messages.ts";
import type { ChardevBackend } from "../qapi/chardev.ts";
import { flattenAddress, type SocketAddress as Wire } from "../qapi/sockets.ts";
import type { Listener, SocketAddress, Sockets, Stream } from "../runtime/driver.ts";
import { reasonOf, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import type { SocketName } from "../runtime/sockaddr.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import type { AddressPlan } from "./address.ts";
import type { Chardev } from "./chardev.ts";
import { ClientChardev, ServerChardev } from "./socket.ts";

type SocketOptions = Extract<ChardevBackend, { type: "socket" }>["data"];

export interface SocketParts {
  readonly driver: { readonly sockets: Sockets };
  readonly linux: Linux;
  readonly plan: (address: Wire, fdNumbers: boolean) => Promise<AddressPlan>;
  /** Descriptors may be named by number, as they may on the command line only. */
  readonly fdNumbers: boolean;
  readonly log: Log;
}

/** As long as the kernel lets it be. */
const BACKLOG = 4096;
/** Of QSD's sockets; asking for one is an error, turning it off is not. */
const UNSUPPORTED = ["telnet", "tn3270", "websocket", "tls-creds"] as const;

/** Throws an OutportError in QSD's words. */
export async function openSocket(
  id: string,
  options: SocketOptions,
  parts: SocketParts,
): Promise<Chardev> {
  const { server = true, wait = false } = options;
  validate(options, server);
  const address = flattenAddress(options.addr);
  const plan = await parts.plan(address, parts.fdNumbers);
  if (!server) return openClient(id, address, plan, options, parts);
  const listeners = await listen(plan, parts);
  const port = listeners[0]?.port;
  const shown = address.type === "inet" && port !== undefined ? `${port}` : undefined;
  const bound = shown === undefined ? address : ({ ...address, port: shown } as Wire);
  const chardev = new ServerChardev(id, bound, listeners, wait);
  if (wait) parts.log("warn", `waiting for connection on: ${chardev.filename}`);
  return chardev;
}

function validate(options: SocketOptions, server: boolean): void {
  const { "reconnect-ms": reconnectMs = 0, "tls-authz": tlsAuthz, "tls-creds": tlsCreds } = options;
  if (server && reconnectMs !== 0) {
    throw invalid("'reconnect-ms' option is incompatible with socket in server listen mode");
  }
  if (!server && options.wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  if (tlsAuthz !== undefined && tlsCreds === undefined) {
    throw invalid("'tls_authz' option requires 'tls_creds' option");
  }
  for (const name of UNSUPPORTED) {
    if (options[name] !== undefined && options[name] !== false) {
      throw new OutportError("unsupported", `'${name}' is not supported`);
    }
  }
}

async function openClient(
  id: string,
  address: Wire,
  plan: AddressPlan,
  options: SocketOptions,
  parts: SocketParts,
): Promise<Chardev> {
  const chardev = new ClientChardev(id, {
    address,
    connect: () => connect(plan, options.nodelay ?? false, parts),
    reconnectMs: Math.max(0, options["reconnect-ms"] ?? 0),
    onFailure: (error) => {
      const reason = error instanceof Error ? error.message : String(error);
      parts.log("error", `Unable to connect character device ${id}: ${reason}`);
    },
  });
  await chardev.connect();
  return chardev;
}

/** On every address of the first choice that can be listened on. */
async function listen(plan: AddressPlan, parts: SocketParts): Promise<Listener[]> {
  const { linux } = parts;
  let reason: unknown;
  for (const choice of plan.choices) {
    const listeners: Listener[] = [];
    for (const address of choice) {
      try {
        const target = runtimeAddress(address, linux, (fd, name) => {
          const bound = linux.bind(fd, name);
          return bound < 0 ? bound : linux.listen(fd, BACKLOG);
        });
        listeners.push(await parts.driver.sockets.listen(target));
      } catch (error) {
        reason ??= error;
      }
    }
    if (listeners.length > 0) return listeners;
  }
  const [first] = plan.choices[0] ?? [];
  const where = first?.type === "unix" ? ` to ${plan.label}` : "";
  throw failure(reason, plan.label, `Failed to bind socket${where}`);
}

async function connect(plan: AddressPlan, noDelay: boolean, parts: SocketParts): Promise<Stream> {
  const { linux } = parts;
  let reason: unknown;
  for (const address of plan.choices[0] ?? []) {
    try {
      const target = runtimeAddress(address, linux, (fd, name) => linux.connect(fd, name));
      return await parts.driver.sockets.connect(target, { noDelay });
    } catch (error) {
      reason = error;
    }
  }
  throw failure(reason, plan.label, `Failed to connect to '${plan.label}'`);
}

/** Addresses that only the kernel knows: the runtime gets a socket that is ready. */
function runtimeAddress(
  address: ListenAddress,
  linux: Linux,
  prepare: (fd: number, name: SocketName) => number,
): SocketAddress {
  switch (address.type) {
    case "unix":
      if (!address.path.startsWith("\0")) return address;
      return { type: "fd", fd: openRaw(AF_UNIX, address, linux, prepare) };
    case "inet":
      return { type: "inet", host: address.address, port: address.port };
    case "vsock":
      return { type: "fd", fd: openRaw(AF_VSOCK, address, linux, prepare) };
    case "fd":
      if (linux.getsockopt(address.fd, SOL_SOCKET, SO_TYPE) >= 0) return address;
      throw invalid(`File descriptor '${address.fd}' is not a socket`);
  }
}

function openRaw(
  family: number,
  name: SocketName,
  linux: Linux,
  prepare: (fd: number, name: SocketName) => number,
): number {
  const fd = linux.socket(family, SOCK_STREAM);
  if (fd < 0) throw systemError(fd);
  const result = prepare(fd, name);
  if (result >= 0) return fd;
  linux.close(fd);
  throw systemError(result);
}

function systemError(result: number): Error {
  return new Error(strerror(-result));
}

/** What the runtime says, in the system's words. */
function failure(error: unknown, label: string, what: string): OutportError {
  if (error instanceof OutportError) return error;
  const code = String((error as { code?: unknown }).code);
  // The resolver's own codes are no errno.
  if (["ENOTFOUND", "EAI_AGAIN", "EAI_NONAME", "EAI_NODATA"].includes(code)) {
    const message = `address resolution failed for ${label}: Name or service not known`;
    return new OutportError("not-found", message, { cause: error });
  }
  return new OutportError("io", `${what}: ${reasonOf(error)}`, { cause: error });
}

function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}
