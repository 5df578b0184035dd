/**
 * From a SocketAddress of the user to addresses that can be listened on or connected to: host
 * names resolved, numbers parsed. Thread: main.
 * Spec: qapi/sockets.json SocketAddress; QEMU's util/qemu-sockets.c for messages and defaults
 */
import type { KeepAlive, ListenAddress } from "../iothread/messages.ts";
import type { SocketAddress } from "../qapi/sockets.ts";
import type { Sockets } from "../runtime/driver.ts";
import { encodeSocketName, UNIX_PATH_BYTES_MAX } from "../runtime/sockaddr.ts";
import { OutportError } from "../util/error.ts";

type Inet = Extract<SocketAddress, { type: "inet" }>;
type Unix = Extract<SocketAddress, { type: "unix" }>;

/** Sets of addresses to try, the first that can be listened on wins, and how messages name it. */
export interface ListenPlan {
  readonly label: string;
  readonly choices: readonly (readonly ListenAddress[])[];
}

const PORT_MAX = 65535;
const U32_MAX = 0xffff_ffff;
/** An int of the kernel. */
const FD_MAX = 0x7fff_ffff;
/** Services that people name. Spec: IANA service names */
const SERVICES: ReadonlyMap<string, number> = new Map([["nbd", 10809]]);

/**
 * Throws OutportError in QSD's words. `fdNumbers`: descriptors may be named by number, as they may
 * on the command line only.
 */
export async function planListen(
  address: SocketAddress,
  resolve: Sockets["resolve"],
  fdNumbers: boolean,
): Promise<ListenPlan> {
  switch (address.type) {
    case "unix":
      return { label: address.path, choices: [[unixAddress(address)]] };
    case "inet":
      return planInet(address, resolve);
    case "vsock": {
      const cid = parseNumber(address.cid, U32_MAX);
      if (cid === null) throw new OutportError("invalid", `Failed to parse cid '${address.cid}'`);
      const port = parseNumber(address.port, U32_MAX);
      if (port === null) {
        throw new OutportError("invalid", `Failed to parse port '${address.port}'`);
      }
      return { label: `vsock:${cid}:${port}`, choices: [[{ type: "vsock", cid, port }]] };
    }
    case "fd": {
      const fd = fdNumbers ? parseNumber(address.str, FD_MAX) : null;
      if (fd === null) {
        const message = fdNumbers
          ? `Unable to parse FD number ${address.str}`
          : "only QEMU supports file descriptor passing";
        throw new OutportError("invalid", message);
      }
      return { label: `fd:${fd}`, choices: [[{ type: "fd", fd }]] };
    }
  }
}

function unixAddress(address: Unix): ListenAddress {
  const { path, abstract = false, tight = true } = address;
  const unused = UNIX_PATH_BYTES_MAX - new TextEncoder().encode(path).length - (abstract ? 1 : 0);
  if (unused < 0) throw new OutportError("invalid", `UNIX socket path '${path}' is too long`);
  if (!abstract) return { type: "unix", path };
  return { type: "unix", path: `\0${path}${"\0".repeat(tight ? 0 : unused)}` };
}

async function planInet(address: Inet, resolve: Sockets["resolve"]): Promise<ListenPlan> {
  const { host, ipv4, ipv6 } = address;
  const label = `${host}:${address.port}`;
  const failed = (reason: string) =>
    new OutportError("invalid", `address resolution failed for ${label}: ${reason}`);
  if (ipv4 === false && ipv6 === false) {
    throw new OutportError("invalid", "Cannot disable IPv4 and IPv6 at same time");
  }
  if (host === "" && address.port === "") throw failed("Name or service not known");
  const first = parsePort(address);
  if (first === null) {
    const named = address.numeric === true;
    throw failed(named ? "Name or service not known" : "Servname not supported for ai_socktype");
  }
  const only = onlyFamily(address);
  const hosts = await lookUp(address, resolve).catch(() => {
    throw failed("Name or service not known");
  });
  const wanted = hosts.filter(({ family }) => only === 0 || family === only);
  if (wanted.length === 0) throw failed("Address family for hostname not supported");
  const last = address.to ?? first;
  // QSD differs: it finds that it has created no socket, and shows whatever errno it has.
  if (last < first) throw new OutportError("invalid", `No port from ${first} to ${last}`);
  const options = { keepAlive: keepAliveOf(address), mptcp: address.mptcp ?? false };
  // IPv6 sockets take IPv6 only when IPv4 is forbidden or has a socket of its own.
  const v6only = only === 6 || wanted.some(({ family }) => family === 4);
  const choices: ListenAddress[][] = [];
  for (let port = first; port <= last; port++) {
    choices.push(wanted.map((one) => ({ type: "inet", ...one, port, v6only, ...options })));
  }
  return { label, choices };
}

/** Null when there is no such service. */
function parsePort({ port, numeric }: Inet): number | null {
  if (port === "") return 0;
  // As the C library's getaddrinfo() does.
  const digits = /^[ \t\n\v\f\r]*\+?(\d+)$/.exec(port)?.[1];
  // QSD differs: it takes the low 16 bits of a larger number.
  if (digits !== undefined) return parseNumber(digits, PORT_MAX);
  return numeric === true ? null : (SERVICES.get(port) ?? null);
}

/** Null when it is off. 0: the kernel's default. */
function keepAliveOf(address: Inet): KeepAlive | null {
  if (address["keep-alive"] !== true) return null;
  return {
    count: address["keep-alive-count"] ?? 0,
    idleSeconds: address["keep-alive-idle"] ?? 0,
    intervalSeconds: address["keep-alive-interval"] ?? 0,
  };
}

/** One of the two alone, when it is asked for or the other is forbidden; else 0. */
function onlyFamily({ ipv4, ipv6 }: Inet): 0 | 4 | 6 {
  if (ipv4 === ipv6) return 0;
  if (ipv6 === true) return 6;
  if (ipv4 === true) return 4;
  return ipv4 === false ? 6 : 4;
}

/** Throws when there is no such host. */
async function lookUp(
  { host, numeric }: Inet,
  resolve: Sockets["resolve"],
): Promise<{ address: string; family: 4 | 6 }[]> {
  if (host === "") {
    return [
      { address: "0.0.0.0", family: 4 },
      { address: "::", family: 6 },
    ];
  }
  for (const family of [4, 6] as const) {
    const name = { type: "inet", family, address: host, port: 0 } as const;
    if (encodeSocketName(name) !== undefined) return [{ address: host, family }];
  }
  if (numeric === true || /[:/[\]]/.test(host)) throw new Error("not a numeric address");
  const unique = new Map((await resolve(host)).map((one) => [one.address, one]));
  return [...unique.values()].map(({ address, family }) => ({ address, family }));
}

function parseNumber(text: string, max: number): number | null {
  if (!/^\d{1,10}$/.test(text)) return null;
  const value = Number(text);
  return value <= max ? value : null;
}
