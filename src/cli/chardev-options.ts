/**
 * What --chardev takes: a flat list of key=value, not QAPI. Pure.
 * Spec: QEMU util/qemu-option.c, chardev/char.c, chardev/char-socket.c
 */
import { isWellformedId } from "../block/catalogue.ts";
import { parseSwitch } from "../qapi/numbers.ts";
import type { SocketAddress } from "../runtime/driver.ts";
import { OutportError } from "../util/error.ts";

export type ChardevOptions = { readonly id: string } & (
  | { readonly backend: "stdio" }
  | {
      readonly backend: "socket";
      readonly address: SocketAddress;
      /** The address as messages name it. */
      readonly label: string;
      readonly server: boolean;
      /** A server holds up the start until its first client is there. */
      readonly wait: boolean;
    }
);

const BOOLS = ["abstract", "tight", "server", "wait", "telnet", "websocket", "tn3270", "delay"];
const ACCEPTED = ["host", "port", "path", "fd", "to", "ipv4", "ipv6", "nodelay", "reconnect-ms"];
const OTHERS = ["id", "backend", "signal", "mux", "logfile", "logappend", "tls-creds"];
const KNOWN: readonly string[] = [...BOOLS, ...ACCEPTED, ...OTHERS];
/** Of QSD's sockets; asking for one is an error, turning it off is not. */
const UNSUPPORTED = [
  "telnet",
  "websocket",
  "tn3270",
  "tls-creds",
  "logfile",
  "mux",
  "reconnect-ms",
];

type Wire = Readonly<Record<string, string>>;

/** Throws an OutportError in QSD's words. */
export function parseChardev(text: string): ChardevOptions {
  const options = parseItems(text);
  const { id, backend } = options;
  for (const key of Object.keys(options)) {
    if (!KNOWN.includes(key)) throw invalid(`Invalid parameter '${key}'`);
  }
  if (id !== undefined && !isWellformedId(id)) {
    throw invalid("Parameter 'id' expects an identifier");
  }
  if (id === undefined) throw invalid("chardev: no id specified");
  if (backend === undefined) throw invalid(`chardev: "${id}" missing backend`);
  const refused = UNSUPPORTED.find((key) => options[key] !== undefined && options[key] !== "off");
  if (refused !== undefined) {
    throw new OutportError("unsupported", `chardev: ${backend}: '${refused}' is not supported`);
  }
  if (backend === "stdio") return { id, backend };
  if (backend === "socket") return parseSocket(id, options);
  throw invalid(`'${backend}' is not a valid char driver name`);
}

function parseSocket(id: string, options: Wire): ChardevOptions {
  const server = flag(options, "server", false);
  if (!server && options.wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  const wait = server && flag(options, "wait", true);
  return { id, backend: "socket", ...parseAddress(options), server, wait };
}

function parseAddress(options: Wire): { address: SocketAddress; label: string } {
  const { path, fd, host, port } = options;
  if ([path, fd, host].filter((each) => each !== undefined).length > 1) {
    throw invalid("None or one of 'path', 'fd' or 'host' option required.");
  }
  if (path !== undefined) {
    const name = flag(options, "abstract", false) ? `\0${path}` : path;
    return { address: { type: "unix", path: name }, label: path };
  }
  if (host !== undefined || port !== undefined) {
    if (port === undefined) throw invalid("chardev: socket: no port given");
    const label = `${host ?? ""}:${port}`;
    if (!/^[0-9]{1,5}$/.test(port)) {
      const reason = "Servname not supported for ai_socktype";
      throw invalid(`address resolution failed for ${label}: ${reason}`);
    }
    return { address: { type: "inet", host: host ?? "", port: Number(port) % 65536 }, label };
  }
  if (fd === undefined || !/^[0-9]+$/.test(fd)) {
    throw invalid(`Unable to parse FD number ${fd ?? ""}`);
  }
  return { address: { type: "fd", fd: Number(fd) }, label: `fd:${fd}` };
}

function flag(options: Wire, key: string, missing: boolean): boolean {
  const value = options[key];
  if (value === undefined) return missing;
  const parsed = parseSwitch(value);
  if (parsed !== undefined) return parsed;
  throw invalid(`Parameter '${key}' expects 'on' or 'off'`);
}

/** Commas separate; two stand for one. A bare word is the backend first, then a switch. */
function parseItems(text: string): Wire {
  const items = text.match(/(?:[^,]|,,)+/g) ?? [];
  const options: Record<string, string> = {};
  items.forEach((item, index) => {
    const plain = item.replaceAll(",,", ",");
    const equals = plain.indexOf("=");
    if (equals >= 0) options[plain.slice(0, equals)] = plain.slice(equals + 1);
    else if (index === 0) options.backend = plain;
    else if (BOOLS.includes(plain)) options[plain] = "on";
    else if (plain.startsWith("no")) options[plain.slice(2)] = "off";
    else options[plain] = "on";
  });
  return options;
}

function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}
