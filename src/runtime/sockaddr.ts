/**
 * Socket addresses as the kernel has them. Thread: any.
 * Spec: unix(7), ip(7), ipv6(7), vsock(7); RFC 4291 §2.2, RFC 5952
 */
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  AF_VSOCK,
  SOCKADDR_FAMILY,
  SOCKADDR_IN_ADDR,
  SOCKADDR_IN_PORT,
  SOCKADDR_IN_SIZE,
  SOCKADDR_IN6_ADDR,
  SOCKADDR_IN6_PORT,
  SOCKADDR_IN6_SCOPE_ID,
  SOCKADDR_IN6_SIZE,
  SOCKADDR_UN_PATH,
  SOCKADDR_UN_PATH_BYTES,
  SOCKADDR_VM_CID,
  SOCKADDR_VM_PORT,
  SOCKADDR_VM_SIZE,
} from "../abi/linux-socket.ts";

/** A numeric address. Nothing here resolves names. */
export type SocketName =
  /** `path` beginning with NUL is an abstract name; empty for an unnamed socket. */
  | { readonly type: "unix"; readonly path: string }
  /** `address` of family 6 may end in "%" and the number of an interface. */
  | {
      readonly type: "inet";
      readonly family: 4 | 6;
      readonly address: string;
      readonly port: number;
    }
  | { readonly type: "vsock"; readonly cid: number; readonly port: number };

/** Longest path that bind() takes, in UTF-8 bytes. At that length it has no closing NUL. */
export const UNIX_PATH_BYTES_MAX = SOCKADDR_UN_PATH_BYTES;

/** The struct sockaddr_*, exactly as long as the kernel wants it; undefined if it can't be one. */
export function encodeSocketName(name: SocketName): Uint8Array | undefined {
  switch (name.type) {
    case "unix":
      return encodeUnix(name.path);
    case "inet":
      return name.family === 4
        ? encodeInet4(name.address, name.port)
        : encodeInet6(name.address, name.port);
    case "vsock": {
      const bytes = new Uint8Array(SOCKADDR_VM_SIZE);
      const view = new DataView(bytes.buffer);
      view.setUint16(SOCKADDR_FAMILY, AF_VSOCK, true);
      view.setUint32(SOCKADDR_VM_PORT, name.port, true);
      view.setUint32(SOCKADDR_VM_CID, name.cid, true);
      return bytes;
    }
  }
}

/** The address in a struct sockaddr_*; undefined for a family that is none of ours. */
export function decodeSocketName(bytes: Uint8Array): SocketName | undefined {
  // An unnamed unix socket has the family alone; a cut one reads as zeroes.
  const whole = new Uint8Array(SOCKADDR_UN_PATH + SOCKADDR_UN_PATH_BYTES);
  whole.set(bytes.subarray(0, whole.length));
  const view = new DataView(whole.buffer);
  switch (view.getUint16(SOCKADDR_FAMILY, true)) {
    case AF_UNIX:
      return { type: "unix", path: decodeUnixPath(whole, bytes.length) };
    case AF_INET: {
      const address = whole.subarray(SOCKADDR_IN_ADDR, SOCKADDR_IN_ADDR + 4).join(".");
      return { type: "inet", family: 4, address, port: view.getUint16(SOCKADDR_IN_PORT) };
    }
    case AF_INET6: {
      const scope = view.getUint32(SOCKADDR_IN6_SCOPE_ID, true);
      const address = formatInet6(view, SOCKADDR_IN6_ADDR) + (scope === 0 ? "" : `%${scope}`);
      return { type: "inet", family: 6, address, port: view.getUint16(SOCKADDR_IN6_PORT) };
    }
    case AF_VSOCK:
      return {
        type: "vsock",
        cid: view.getUint32(SOCKADDR_VM_CID, true),
        port: view.getUint32(SOCKADDR_VM_PORT, true),
      };
    default:
      return undefined;
  }
}

function encodeUnix(path: string): Uint8Array | undefined {
  const text = new TextEncoder().encode(path);
  const abstract = path.startsWith("\0");
  if (text.length > UNIX_PATH_BYTES_MAX) return undefined;
  if (!abstract && (text.length === 0 || text.includes(0))) return undefined;
  // The length of an abstract name is its end; a path has a closing NUL if there is room for it.
  const length = abstract ? text.length : Math.min(text.length + 1, SOCKADDR_UN_PATH_BYTES);
  const bytes = new Uint8Array(SOCKADDR_UN_PATH + length);
  new DataView(bytes.buffer).setUint16(SOCKADDR_FAMILY, AF_UNIX, true);
  bytes.set(text, SOCKADDR_UN_PATH);
  return bytes;
}

function decodeUnixPath(whole: Uint8Array, length: number): string {
  let end = Math.max(SOCKADDR_UN_PATH, Math.min(length, whole.length));
  if (whole[SOCKADDR_UN_PATH] !== 0) {
    const nul = whole.indexOf(0, SOCKADDR_UN_PATH);
    if (nul >= 0) end = Math.min(end, nul);
  }
  return new TextDecoder().decode(whole.subarray(SOCKADDR_UN_PATH, end));
}

function encodeInet4(address: string, port: number): Uint8Array | undefined {
  const parts = parseInet4(address);
  if (parts === undefined) return undefined;
  const bytes = new Uint8Array(SOCKADDR_IN_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(SOCKADDR_FAMILY, AF_INET, true);
  view.setUint16(SOCKADDR_IN_PORT, port);
  bytes.set(parts, SOCKADDR_IN_ADDR);
  return bytes;
}

function encodeInet6(address: string, port: number): Uint8Array | undefined {
  const [text = "", zone = "0", ...rest] = address.split("%");
  const groups = parseInet6(text);
  if (groups === undefined || !/^\d{1,9}$/.test(zone) || rest.length > 0) return undefined;
  const bytes = new Uint8Array(SOCKADDR_IN6_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(SOCKADDR_FAMILY, AF_INET6, true);
  view.setUint16(SOCKADDR_IN6_PORT, port);
  for (const [i, group] of groups.entries()) view.setUint16(SOCKADDR_IN6_ADDR + 2 * i, group);
  view.setUint32(SOCKADDR_IN6_SCOPE_ID, Number(zone), true);
  return bytes;
}

function parseInet4(text: string): number[] | undefined {
  const parts = text.split(".");
  if (parts.length !== 4) return undefined;
  const numbers = parts.map((part) => (/^\d{1,3}$/.test(part) ? Number(part) : 256));
  return numbers.every((number) => number <= 255) ? numbers : undefined;
}

/** Eight groups of 16 bits. */
function parseInet6(text: string): number[] | undefined {
  const halves = text.split("::").map((half) => parseGroups(half));
  const [head, tail] = halves;
  if (head === undefined || halves.length > 2) return undefined;
  if (halves.length === 1) return head.length === 8 ? head : undefined;
  if (tail === undefined || head.length + tail.length > 7) return undefined;
  return [...head, ...new Array<number>(8 - head.length - tail.length).fill(0), ...tail];
}

/** The groups between colons, the last of which may be an IPv4 address. */
function parseGroups(text: string): number[] | undefined {
  if (text === "") return [];
  const groups: number[] = [];
  const parts = text.split(":");
  for (const [i, part] of parts.entries()) {
    if (i === parts.length - 1 && part.includes(".")) {
      const inet4 = parseInet4(part);
      if (inet4 === undefined) return undefined;
      groups.push(inet4[0]! * 256 + inet4[1]!, inet4[2]! * 256 + inet4[3]!);
    } else {
      if (!/^[0-9a-fA-F]{1,4}$/.test(part)) return undefined;
      groups.push(Number.parseInt(part, 16));
    }
  }
  return groups;
}

function formatInet6(view: DataView, at: number): string {
  const groups: number[] = [];
  for (let i = 0; i < 8; i++) groups.push(view.getUint16(at + 2 * i));
  // An IPv4-mapped address shows its last 32 bits as one.
  const mapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (mapped) return `::ffff:${new Uint8Array(view.buffer, at + 12, 4).join(".")}`;
  const hex = groups.map((group) => group.toString(16)).join(":");
  // The longest run of two or more zero groups, the first of equals, becomes "::".
  const runs = [...hex.matchAll(/(?<![^:])0(:0)+(?![^:])/g)];
  const longest = runs.reduce((best, run) => (run[0].length > best.length ? run[0] : best), "");
  if (longest === "") return hex;
  const start = runs.find((run) => run[0] === longest)!.index;
  const before = hex.slice(0, start).replace(/:$/, "");
  return `${before}::${hex.slice(start + longest.length).replace(/^:/, "")}`;
}
