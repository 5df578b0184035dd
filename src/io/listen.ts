/**
 * Listening sockets: made from an address, with QSD's words when that fails, and taken down again.
 * Thread: any.
 *
 * Spec: qapi/sockets.json SocketAddress
 */
import { S_IFDIR, S_IFMT, S_IFSOCK } from "../abi/linux.ts";
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  AF_VSOCK,
  IPPROTO_IPV6,
  IPPROTO_MPTCP,
  IPPROTO_TCP,
  IPV6_V6ONLY,
  SO_KEEPALIVE,
  SO_REUSEADDR,
  SO_TYPE,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  TCP_KEEPCNT,
  TCP_KEEPIDLE,
  TCP_KEEPINTVL,
} from "../abi/linux-socket.ts";
import type { KeepAlive, ListenAddress } from "../iothread/messages.ts";
import { EADDRINUSE, EAGAIN, EISDIR, ENOENT, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { statPlace } from "../runtime/linux-mount.ts";
import { OutportError } from "../util/error.ts";

/** SOMAXCONN of Linux; the host's own limit caps it. */
const BACKLOG = 4096;

export interface Listener {
  readonly fd: number;
  readonly kind: "unix" | "inet" | "vsock";
  /** Chosen or given, for inet; otherwise 0. */
  readonly port: number;
  /** The file that this listener made, with its identity. */
  readonly file: { readonly path: string; readonly dev: number; readonly ino: number } | null;
}

/** Throws OutportError. */
export function openListener(linux: Linux, address: ListenAddress): Listener {
  switch (address.type) {
    case "unix":
      return listenUnix(linux, address.path);
    case "inet":
      return listenInet(linux, address);
    case "vsock": {
      const fd = openSocket(linux, AF_VSOCK);
      check(linux, fd, linux.bind(fd, address), "Failed to bind socket");
      check(linux, fd, linux.listen(fd, BACKLOG), "Failed to listen on socket");
      return { fd, kind: "vsock", port: 0, file: null };
    }
    case "fd":
      return listenInherited(linux, address.fd);
  }
}

/** On every address that can be listened on. Throws the last OutportError when there is none. */
export function openListeners(linux: Linux, addresses: readonly ListenAddress[]): Listener[] {
  const opened: Listener[] = [];
  let failure: unknown = new OutportError("invalid", "No address to listen on");
  for (const address of addresses) {
    // The addresses of one name share the port that the first one got.
    const port = opened[0]?.port ?? 0;
    const shared = address.type === "inet" && address.port === 0 ? { ...address, port } : address;
    try {
      opened.push(openListener(linux, shared));
    } catch (error) {
      failure = error;
    }
  }
  if (opened.length === 0) throw failure;
  return opened;
}

export function closeListener(linux: Linux, listener: Listener): void {
  linux.close(listener.fd);
  removeFile(linux, listener);
}

/**
 * Removes its file, unless someone has put another one there.
 * QSD differs: it leaves the file behind when the process ends by a signal or by quit.
 */
export function removeFile(linux: Linux, { file }: Listener): void {
  if (file === null) return;
  const { path, dev, ino } = file;
  const now = statPlace(linux, path);
  if (typeof now === "object" && now.dev === dev && now.ino === ino) linux.unlink(path);
}

function listenUnix(linux: Linux, path: string): Listener {
  const abstract = path.startsWith("\0");
  const shown = path.replaceAll("\0", "");
  if (!abstract) removeStaleSocket(linux, path);
  const fd = openSocket(linux, AF_UNIX);
  check(linux, fd, linux.bind(fd, { type: "unix", path }), `Failed to bind socket to ${shown}`);
  const listener: Listener = {
    fd,
    kind: "unix",
    port: 0,
    file: abstract ? null : own(linux, path),
  };
  const result = linux.listen(fd, BACKLOG);
  if (result < 0) {
    closeListener(linux, listener);
    throw failure("Failed to listen on socket", result);
  }
  return listener;
}

function own(linux: Linux, path: string): Listener["file"] {
  const made = statPlace(linux, path);
  return typeof made === "object" ? { path, dev: made.dev, ino: made.ino } : null;
}

/** Makes room for bind() where an earlier daemon left its socket. */
function removeStaleSocket(linux: Linux, path: string): void {
  const found = statPlace(linux, path);
  if (found === -ENOENT) return;
  if (typeof found === "number") throw failure(`Failed to unlink socket ${path}`, found);
  if ((found.mode & S_IFMT) === S_IFDIR) {
    throw failure(`Failed to unlink socket ${path}`, -EISDIR);
  }
  // QSD differs: it removes what is there, be it a disk image. Here bind() refuses instead.
  if ((found.mode & S_IFMT) !== S_IFSOCK) return;
  // QSD differs: it takes the path from whoever listens there, itself included.
  if (isListening(linux, path)) {
    throw failure(`Failed to bind socket to ${path}`, -EADDRINUSE);
  }
  const result = linux.unlink(path);
  if (result < 0 && result !== -ENOENT) throw failure(`Failed to unlink socket ${path}`, result);
}

/** Somebody accepts connections there, or would with a shorter backlog. */
function isListening(linux: Linux, path: string): boolean {
  const fd = linux.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
  if (fd < 0) return false;
  const result = linux.connect(fd, { type: "unix", path });
  linux.close(fd);
  return result === 0 || result === -EAGAIN;
}

function listenInet(linux: Linux, address: ListenAddress & { type: "inet" }): Listener {
  const family = address.family === 6 ? AF_INET6 : AF_INET;
  const fd = openSocket(linux, family, address.mptcp ? IPPROTO_MPTCP : 0);
  linux.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  let result = bindInet(linux, fd, address, address.v6only);
  if (result === -EADDRINUSE && address.family === 6 && !address.v6only) {
    // The IPv4 half may be someone's already.
    result = bindInet(linux, fd, address, true);
  }
  const taken = "Failed to find an available port";
  check(linux, fd, result, result === -EADDRINUSE ? taken : "Failed to bind socket");
  result = linux.listen(fd, BACKLOG);
  check(linux, fd, result, result === -EADDRINUSE ? taken : "Failed to listen on socket");
  if (address.keepAlive !== null) setKeepAlive(linux, fd, address.keepAlive);
  return { fd, kind: "inet", port: portOf(linux, fd), file: null };
}

/** Accepted sockets inherit it. */
function setKeepAlive(linux: Linux, fd: number, keepAlive: KeepAlive): void {
  const { count, idleSeconds, intervalSeconds } = keepAlive;
  const set = (level: number, option: number, value: number, what: string): void => {
    const result = linux.setsockopt(fd, level, option, value);
    check(linux, fd, result, `Unable to set ${what} option on socket`);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1, "keep-alive");
  if (count > 0) set(IPPROTO_TCP, TCP_KEEPCNT, count, "TCP keep-alive count");
  if (idleSeconds > 0) set(IPPROTO_TCP, TCP_KEEPIDLE, idleSeconds, "TCP keep-alive idle");
  if (intervalSeconds > 0) {
    set(IPPROTO_TCP, TCP_KEEPINTVL, intervalSeconds, "TCP keep-alive interval");
  }
}

function bindInet(
  linux: Linux,
  fd: number,
  address: ListenAddress & { type: "inet" },
  v6only: boolean,
): number {
  if (address.family === 6) linux.setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, v6only ? 1 : 0);
  return linux.bind(fd, address);
}

function listenInherited(linux: Linux, fd: number): Listener {
  if (linux.getsockopt(fd, SOL_SOCKET, SO_TYPE) < 0) {
    throw new OutportError("invalid", `File descriptor '${fd}' is not a socket`);
  }
  const result = linux.listen(fd, BACKLOG);
  if (result < 0) throw failure("Failed to listen on fd socket", result);
  const name = linux.getsockname(fd);
  const kind = typeof name === "object" ? name.type : "unix";
  return { fd, kind, port: portOf(linux, fd), file: null };
}

function portOf(linux: Linux, fd: number): number {
  const name = linux.getsockname(fd);
  return typeof name === "object" && name.type === "inet" ? name.port : 0;
}

function openSocket(linux: Linux, family: number, protocol = 0): number {
  const fd = linux.socket(family, SOCK_STREAM, protocol);
  if (fd < 0) throw failure("Failed to create a socket", fd);
  return fd;
}

/** Closes `fd` and throws when `result` is an error. */
function check(linux: Linux, fd: number, result: number, message: string): void {
  if (result >= 0) return;
  linux.close(fd);
  throw failure(message, result);
}

function failure(message: string, errno: number): OutportError {
  return new OutportError("io", `${message}: ${strerror(errno)}`);
}
