/**
 * Opens socket devices: listens, or connects. Thread: main.
 * Spec: QEMU chardev/char-socket.c qmp_chardev_validate_socket(), util/qemu-sockets.c
 */
import {
  AF_UNIX,
  AF_VSOCK,
  SO_TYPE,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
} from "../abi/linux-socket.ts";
import { type Listener as Opened, openListeners, removeFile } from "../io/listen.ts";
import { type ListenPlan, planListen } from "../io/listen-plan.ts";
import type { ListenAddress } from "../iothread/messages.ts";
import type { ChardevBackend } from "../qapi/chardev.ts";
import { flattenAddress, type SocketAddress as Wire } from "../qapi/sockets.ts";
import type { Listener, SocketAddress, Sockets, Stream } from "../runtime/driver.ts";
import { reasonOf, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import type { SocketName } from "../runtime/sockaddr.ts";
import { invalid, OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import type { Chardev } from "./chardev.ts";
import { ClientChardev, ServerChardev } from "./socket.ts";

type SocketOptions = Extract<ChardevBackend, { type: "socket" }>["data"];

export interface SocketParts {
  readonly driver: { readonly sockets: Sockets };
  readonly linux: Linux;
  /** Descriptors may be named by number, as they may on the command line only. */
  readonly fdNumbers: boolean;
  readonly log: Log;
}

/** What a server accepts on. */
interface Bound {
  readonly listeners: readonly Listener[];
  /** Of an inet address; 0 otherwise. */
  readonly port: number;
  readonly removeFiles: () => void;
}

/** Throws an OutportError in QSD's words. */
export async function openSocket(
  id: string,
  options: SocketOptions,
  parts: SocketParts,
): Promise<Chardev> {
  const { server = true, wait = false } = options;
  validate(options, server);
  const address = flattenAddress(options.addr);
  const plan = await planListen(address, parts.driver.sockets.resolve, parts.fdNumbers);
  if (!server) return openClient(id, address, plan, options, parts);
  const bound = await listen(plan, parts);
  // The kernel may have chosen the port.
  const shown = address.type === "inet" ? { ...address, port: `${bound.port}` } : address;
  const chardev = new ServerChardev(id, { ...bound, address: shown, wait });
  if (wait) parts.log("warn", `waiting for connection on: ${chardev.filename}`);
  return chardev;
}

function validate(options: SocketOptions, server: boolean): void {
  const { "reconnect-ms": reconnectMs, "tls-authz": tlsAuthz, "tls-creds": tlsCreds } = options;
  refuse(options, "tls-creds");
  if (options.addr.type === "fd" && reconnectMs !== undefined) {
    throw invalid("'reconnect-ms' option is incompatible with 'fd' address type");
  }
  if (tlsAuthz !== undefined && tlsCreds === undefined) {
    throw invalid("'tls_authz' option requires 'tls_creds' option");
  }
  if (server && (reconnectMs ?? 0) !== 0) {
    throw invalid("'reconnect-ms' option is incompatible with socket in server listen mode");
  }
  if (!server && options.websocket === true) throw invalid("Websocket client is not implemented");
  if (!server && options.wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  refuse(options, "telnet", "tn3270", "websocket");
}

/** Of QSD's sockets; asking for one is an error, turning it off is not. */
function refuse(options: SocketOptions, ...names: (keyof SocketOptions)[]): void {
  for (const name of names) {
    if (options[name] !== undefined && options[name] !== false) {
      throw new OutportError("unsupported", `'${name}' is not supported`);
    }
  }
}

async function openClient(
  id: string,
  address: Wire,
  plan: ListenPlan,
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
async function listen({ choices }: ListenPlan, { driver, linux }: SocketParts): Promise<Bound> {
  let failure: unknown;
  for (const addresses of choices) {
    let opened: Opened[];
    try {
      opened = openListeners(linux, addresses);
    } catch (error) {
      failure = error;
      continue;
    }
    const listeners: Listener[] = [];
    for (const { fd } of opened) listeners.push(await driver.sockets.listen({ type: "fd", fd }));
    const removeFiles = (): void => {
      for (const one of opened) removeFile(linux, one);
    };
    return { listeners, port: opened[0]?.port ?? 0, removeFiles };
  }
  throw failure;
}

async function connect(plan: ListenPlan, noDelay: boolean, parts: SocketParts): Promise<Stream> {
  const { linux } = parts;
  let reason: unknown;
  for (const address of plan.choices[0] ?? []) {
    try {
      return await parts.driver.sockets.connect(runtimeAddress(address, linux), { noDelay });
    } catch (error) {
      reason = error;
    }
  }
  if (reason instanceof OutportError) throw reason;
  const message = `Failed to connect to '${plan.label}': ${reasonOf(reason)}`;
  throw new OutportError("io", message, { cause: reason });
}

/** Addresses that only the kernel knows: the runtime gets a socket that is connected. */
function runtimeAddress(address: ListenAddress, linux: Linux): SocketAddress {
  switch (address.type) {
    case "unix":
      if (!address.path.startsWith("\0")) return address;
      // It must not wait, as the kernel does for one whose backlog is full.
      return { type: "fd", fd: connectRaw(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, address, linux) };
    case "inet":
      return { type: "inet", host: address.address, port: address.port };
    case "vsock":
      return { type: "fd", fd: connectRaw(AF_VSOCK, SOCK_STREAM, address, linux) };
    case "fd":
      if (linux.getsockopt(address.fd, SOL_SOCKET, SO_TYPE) >= 0) return address;
      throw invalid(`File descriptor '${address.fd}' is not a socket`);
  }
}

function connectRaw(family: number, type: number, name: SocketName, linux: Linux): number {
  const fd = linux.socket(family, type);
  if (fd < 0) throw new Error(strerror(fd));
  const result = linux.connect(fd, name);
  if (result >= 0) return fd;
  linux.close(fd);
  throw new Error(strerror(result));
}
