/**
 * --chardev: a flat list of keys for all kinds of devices, made into what chardev-add takes. Pure.
 * Spec: QEMU chardev/char.c qemu_chr_new_from_opts(), qemu_chr_parse_*()
 */
import type { ChardevBackend } from "../qapi/chardev.ts";
import { parseInteger, parseSwitch } from "../qapi/numbers.ts";
import { nestAddress, type SocketAddress } from "../qapi/sockets.ts";
import { invalid, OutportError } from "../util/error.ts";
import type { Answer } from "./command-line.ts";
import { isHelp } from "./keyval.ts";
import {
  type OnShortForm,
  parseQemuOptions,
  type QemuOptionList,
  type QemuOptions,
  qemuOptionsHelp,
} from "./qemu-options.ts";

/** Keys of kinds that outport lacks are known, too: a device ignores what is another kind's. */
const CHARDEV_OPTION: QemuOptionList = {
  name: "chardev",
  impliedKey: "backend",
  keys: {
    abstract: "bool",
    append: "bool",
    backend: "str",
    chardev: "str",
    "chardevs.0": "str",
    "chardevs.1": "str",
    "chardevs.2": "str",
    "chardevs.3": "str",
    clipboard: "bool",
    cols: "num",
    debug: "num",
    delay: "bool",
    encoding: "str",
    fd: "str",
    height: "num",
    host: "str",
    "input-path": "str",
    ipv4: "bool",
    ipv6: "bool",
    localaddr: "str",
    localport: "str",
    logappend: "bool",
    logfile: "str",
    logtimestamp: "bool",
    mouse: "bool",
    mux: "bool",
    name: "str",
    nodelay: "bool",
    path: "str",
    port: "str",
    "reconnect-ms": "num",
    rows: "num",
    server: "bool",
    signal: "bool",
    size: "size",
    telnet: "bool",
    tight: "bool",
    "tls-authz": "str",
    "tls-creds": "str",
    tn3270: "bool",
    to: "num",
    wait: "bool",
    websocket: "bool",
    width: "num",
  },
};

export type ChardevRequest =
  | { readonly id: string; readonly backend: ChardevBackend }
  | { readonly answer: Answer };

/** Throws an OutportError in QSD's words. */
export function parseChardevOption(text: string, onShortForm: OnShortForm): ChardevRequest {
  const options = parseQemuOptions(text, CHARDEV_OPTION, onShortForm);
  // QSD's exit code: help on keys takes the place of a device, help on kinds is asked for.
  if (options === "help") return { answer: { text: qemuOptionsHelp(CHARDEV_OPTION), exitCode: 1 } };
  const { id, backend, mux } = options;
  if (backend !== undefined && isHelp(backend)) {
    const kinds = Object.keys(PARSERS).map((kind) => `  ${kind}\n`);
    const text = `Available chardev backend types: \n${kinds.join("")}`;
    return { answer: { text, exitCode: 0 } };
  }
  if (id === undefined) throw invalid("chardev: no id specified");
  if (backend === undefined) throw invalid(`chardev: "${id}" missing backend`);
  const parse = Object.hasOwn(PARSERS, backend) ? PARSERS[backend] : undefined;
  if (parse === undefined) throw invalid(`'${backend}' is not a valid char driver name`);
  if (mux !== undefined && parseSwitch(mux) === true) {
    throw new OutportError("unsupported", "chardev: 'mux' is not supported");
  }
  return { id, backend: parse(options) };
}

/** In the order of QSD's list. */
const PARSERS: Readonly<Record<string, (options: QemuOptions) => ChardevBackend>> = {
  file(options) {
    const { path, "input-path": input } = options;
    if (path === undefined) throw invalid("chardev: file: no filename given");
    const data = { ...common(options), out: path, ...given("in", input) };
    return { type: "file", data: { ...data, ...flag(options, "append") } };
  },
  stdio: (options) => ({
    type: "stdio",
    data: { ...common(options), ...flag(options, "signal") },
  }),
  socket: parseSocket,
  null: (options) => ({ type: "null", data: common(options) }),
  pipe(options) {
    if (options.path === undefined) throw invalid("chardev: pipe: no device path given");
    return { type: "pipe", data: { ...common(options), device: options.path } };
  },
};

function parseSocket(options: QemuOptions): ChardevBackend {
  const server = switchOf(options, "server") === true;
  if (!server && options.wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  if (options.delay !== undefined && options.nodelay !== undefined) {
    throw invalid("'delay' and 'nodelay' are mutually exclusive");
  }
  const { "reconnect-ms": reconnect, "tls-creds": creds, "tls-authz": authz } = options;
  return {
    type: "socket",
    data: {
      ...common(options),
      addr: nestAddress(parseAddress(options)),
      server,
      // On the command line a server waits unless it is told not to.
      ...(server ? { wait: switchOf(options, "wait") ?? true } : {}),
      ...flag(options, "nodelay"),
      ...(switchOf(options, "delay") === false ? { nodelay: true } : {}),
      ...flag(options, "telnet"),
      ...flag(options, "tn3270"),
      ...flag(options, "websocket"),
      ...(reconnect === undefined ? {} : { "reconnect-ms": numberOf(reconnect) }),
      ...given("tls-creds", creds),
      ...given("tls-authz", authz),
    },
  };
}

function parseAddress(options: QemuOptions): SocketAddress {
  const { path, fd, host, port, to } = options;
  if ([path, fd, host].filter((each) => each !== undefined).length > 1) {
    throw invalid("None or one of 'path', 'fd' or 'host' option required.");
  }
  if (path !== undefined) {
    return { type: "unix", path, ...flag(options, "abstract"), ...flag(options, "tight") };
  }
  if (host !== undefined) {
    if (port === undefined) throw invalid("chardev: socket: no port given");
    const range = to === undefined ? {} : { to: numberOf(to) & 0xffff };
    return {
      type: "inet",
      host,
      port,
      ...range,
      ...flag(options, "ipv4"),
      ...flag(options, "ipv6"),
    };
  }
  // Without any address it is an unnamed descriptor, which nobody has.
  if (fd === undefined || !/^[0-9]+$/.test(fd)) {
    throw invalid(`Unable to parse FD number ${fd ?? ""}`);
  }
  return { type: "fd", str: fd };
}

/** ChardevCommon */
function common(options: QemuOptions) {
  return {
    ...given("logfile", options.logfile),
    ...flag(options, "logappend"),
    ...flag(options, "logtimestamp"),
  };
}

function given<Key extends string, Value>(key: Key, value: Value | undefined) {
  return (value === undefined ? {} : { [key]: value }) as { [K in Key]?: Value };
}

function flag<Key extends string>(options: QemuOptions, key: Key) {
  return given(key, switchOf(options, key));
}

/** Checked before: it is a number. As C's int64_t. */
function numberOf(text: string): number {
  return Number(BigInt.asIntN(64, parseInteger(text) ?? 0n));
}

/** Checked before: it is a switch. */
function switchOf(options: QemuOptions, key: string): boolean | undefined {
  const value = options[key];
  return value === undefined ? undefined : parseSwitch(value);
}
