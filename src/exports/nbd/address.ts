/**
 * From a SocketAddress of the user to addresses that an iothread can listen on: host names
 * resolved, numbers parsed. Thread: main.
 * Spec: qapi/sockets.json SocketAddress; QEMU's util/qemu-sockets.c for messages and defaults
 */
import type { ListenAddress } from "../../iothread/messages.ts";
import type { SocketAddress } from "../../qapi/sockets.ts";
import type { Sockets } from "../../runtime/driver.ts";
import { UNIX_PATH_BYTES_MAX } from "../../runtime/sockaddr.ts";
import { OutportError } from "../../util/error.ts";

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
const SERVICES: Readonly<Record<string, number>> = { nbd: 10809 };

/** Throws OutportError in QSD's words. */
export async function planListen(
  address: SocketAddress,
  resolve: Sockets["resolve"],
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
      const fd = parseNumber(address.str, FD_MAX);
      if (fd === null) {
        throw new OutportError("invalid", "only QEMU supports file descriptor passing");
      }
      return { label: `fd:${fd}`, choices: [[{ type: "fd", fd }]] };
    }
  }
}

function unixAddress(address: Unix): ListenAddress {
  const { path, abstract = false, tight = true } = address;
  const bytes = new TextEncoder().encode(path).length;
  if (bytes > UNIX_PATH_BYTES_MAX) {
    throw new OutportError("invalid", `UNIX socket path '${path}' is too long`);
  }
  if (!abstract) return { type: "unix", path };
  return { type: "unix", path: `\0${path}${"\0".repeat(tight ? 0 : UNIX_PATH_BYTES_MAX - bytes)}` };
}

async function planInet(address: Inet, resolve: Sockets["resolve"]): Promise<ListenPlan> {
  const { host, port, to, ipv4, ipv6 } = address;
  const label = `${host}:${port}`;
  const failed = (reason: string) =>
    new OutportError("invalid", `address resolution failed for ${label}: ${reason}`);
  if (ipv4 === false && ipv6 === false) {
    throw new OutportError("invalid", "Cannot disable IPv4 and IPv6 at same time");
  }
  const first = port === "" ? 0 : (SERVICES[port] ?? parseNumber(port, PORT_MAX));
  if (first === null) throw failed("Servname not supported for ai_socktype");
  const only = onlyFamily(address);
  const hosts = await lookUp(host, resolve).catch(() => {
    throw failed("Name or service not known");
  });
  const wanted = hosts.filter(({ family }) => only === 0 || family === only);
  if (wanted.length === 0) throw failed("Address family for hostname not supported");
  const choices: ListenAddress[][] = [];
  for (let p = first; p <= Math.min(Math.max(first, to ?? first), PORT_MAX); p++) {
    // IPv6 sockets take IPv6 only when IPv4 is forbidden or has a socket of its own.
    const v6only = only === 6 || wanted.some(({ family }) => family === 4);
    choices.push(wanted.map((one) => ({ type: "inet", ...one, port: p, v6only })));
  }
  return { label, choices };
}

/** One of the two alone, when it is asked for or the other is forbidden; else 0. */
function onlyFamily({ ipv4, ipv6 }: Inet): 0 | 4 | 6 {
  if (ipv4 === ipv6) return 0;
  if (ipv6 === true) return 6;
  if (ipv4 === true) return 4;
  return ipv4 === false ? 6 : 4;
}

async function lookUp(
  host: string,
  resolve: Sockets["resolve"],
): Promise<{ address: string; family: 4 | 6 }[]> {
  if (host === "") {
    return [
      { address: "0.0.0.0", family: 4 },
      { address: "::", family: 6 },
    ];
  }
  if (/^\d+\.\d+\.\d+\.\d+$/.test(host)) return [{ address: host, family: 4 }];
  if (host.includes(":")) return [{ address: host, family: 6 }];
  const unique = new Map((await resolve(host)).map((one) => [one.address, one]));
  return [...unique.values()].map(({ address, family }) => ({ address, family }));
}

function parseNumber(text: string, max: number): number | null {
  if (!/^\d{1,10}$/.test(text)) return null;
  const value = Number(text);
  return value <= max ? value : null;
}
