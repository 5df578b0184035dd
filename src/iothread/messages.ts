/**
 * What main asks of an iothread, and what it answers: the only way in which the two meet.
 * Everything here is structured-cloneable; wire names of QAPI stay as they are inside `options`.
 * Thread: both.
 */
import type { ErrorKind, QapiErrorClass } from "../util/error.ts";
import type { LogLevel } from "../util/log.ts";

/** Members of BlockdevOptions that every driver has, defaults and inheritance applied. */
export interface CommonNodeOptions {
  readonly readOnly: boolean;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly discardUnmap: boolean;
  readonly detectZeroes: "off" | "on" | "unmap";
}

/** Options and graph position of a node to open; its children are open in the same iothread. */
export interface NodeOpen extends CommonNodeOptions {
  readonly nodeName: string;
  readonly driver: string;
  /** The driver's own members of BlockdevOptions, checked, wire names. */
  readonly options: Readonly<Record<string, unknown>>;
  /** Role to node name. */
  readonly children: Readonly<Record<string, string>>;
}

/** What main keeps of an open node. */
export interface NodeInfo {
  readonly bytes: number;
  readonly writable: boolean;
  /** Facts for query-named-block-nodes, wire names. */
  readonly description: Readonly<Record<string, unknown>>;
}

export interface NodePermissions {
  readonly nodeName: string;
  /** PERM_* bits of block/node.ts, over all parents. */
  readonly used: number;
  readonly shared: number;
}

export interface ExportOpen {
  readonly id: string;
  readonly type: string;
  readonly nodeName: string;
  readonly writable: boolean;
  readonly writethrough: boolean;
  /** The type's own members of BlockExportOptions. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** A listening address with its host already resolved. */
export type ListenAddress =
  /** `path` beginning with NUL is an abstract name. */
  | { readonly type: "unix"; readonly path: string }
  /** Numeric address. `v6only` is the value of IPV6_V6ONLY for family 6. */
  | {
      readonly type: "inet";
      readonly family: 4 | 6;
      readonly address: string;
      readonly port: number;
      readonly v6only: boolean;
    }
  | { readonly type: "vsock"; readonly cid: number; readonly port: number }
  | { readonly type: "fd"; readonly fd: number };

export interface NbdServerStart {
  /** All are listened on; "localhost" may be several. Tried in order; one must succeed. */
  readonly addresses: readonly ListenAddress[];
  /** How messages name the address: a path, "host:port", ... */
  readonly label: string;
  /** 0: no limit. */
  readonly connectionsMax: number;
  /** 0: no limit. */
  readonly handshakeSecondsMax: number;
}

/** Counts of one export's backend. */
export interface ExportStatistics {
  readonly readOps: number;
  readonly readBytes: number;
  readonly writeOps: number;
  readonly writeBytes: number;
  readonly flushOps: number;
  readonly discardOps: number;
  readonly discardBytes: number;
  readonly zeroesOps: number;
  readonly zeroesBytes: number;
  readonly failedOps: number;
}

/** Calls of main to an iothread: name → [parameters, reply]. A reply may be an OutportError. */
export interface IothreadCalls {
  "node-open": [NodeOpen, NodeInfo];
  /** Flushes a writable node, closes it. Its parents are closed already. */
  "node-close": [{ nodeName: string }, null];
  /** All of them or none. Children after their parents. */
  "node-permissions": [{ nodes: readonly NodePermissions[] }, null];
  "node-query": [{ nodeName: string }, NodeInfo];
  /** Ready to serve when it returns. The reply is the type's own: NbdExportInfo for nbd. */
  "export-open": [ExportOpen, unknown];
  /** Stops serving: drops the clients, lets requests in flight finish, flushes, forgets it. */
  "export-close": [{ id: string }, null];
  "export-statistics": [{ id: string }, ExportStatistics];
  /** `port` is the one chosen for an inet address, else 0. */
  "nbd-server-start": [NbdServerStart, { port: number }];
  /** Stops listening, ends handshakes, removes a unix path. Exports are closed already. */
  "nbd-server-stop": [Record<string, never>, null];
  /** To the listening thread, for every NBD export of the process: clients may choose it. */
  "nbd-export-register": [NbdExportRegister, null];
  /**
   * The opposite; its name is unknown to clients at once. `safe`: refuses with kind in-use while a
   * client is connected to it, on whatever thread, and nothing changes.
   */
  "nbd-export-unregister": [{ exportId: string; safe: boolean }, { connectionCount: number }];
  /** Adopted from the listening thread: to the thread of the export. See exports/nbd. */
  "nbd-adopt": [NbdAdopt, null];
  /** To the listening thread: a connection that it gave away has ended, or found no taker. */
  "nbd-release": [{ exportId: string; closeFd: number | null }, null];
  /** Closes everything, then the thread returns. */
  stop: [Record<string, never>, null];
}
export type IothreadCall = keyof IothreadCalls;

/** One async handler for each of some calls. */
export type IothreadHandlersOf<Calls extends IothreadCall> = {
  readonly [C in Calls]: (params: IothreadCalls[C][0]) => Promise<IothreadCalls[C][1]>;
};

/** What the listening thread knows of an NBD export. */
export interface NbdExportRegister {
  readonly exportId: string;
  /** Where it lives. */
  readonly iothread: string;
  /** NbdExportInfo of exports/nbd: what clients learn of it. */
  readonly info: unknown;
}

/** A connection that finished its handshake for an export of another iothread. */
export interface NbdAdopt {
  readonly fd: number;
  readonly exportId: string;
  /** Negotiated state, as exports/nbd keeps it. */
  readonly session: unknown;
  /** Bytes that came after the handshake. */
  readonly early: Uint8Array;
}

/** What an iothread tells main by itself. */
export type IothreadEvent =
  | { readonly event: "ready"; readonly engine: string }
  | { readonly event: "log"; readonly level: LogLevel; readonly text: string }
  /** From the listening thread: a client chose an export that lives on `iothread`. */
  | { readonly event: "nbd-adopt"; readonly iothread: string; readonly adopt: NbdAdopt }
  /** An adopted connection ended, on the thread of its export. */
  | { readonly event: "nbd-released"; readonly exportId: string };

/** What a new iothread gets as its `data`. */
export interface IothreadStart {
  /** Object id, or "main-loop" for the one built in. */
  readonly id: string;
  /** An eventfd, written after each message to the thread. */
  readonly wakeFd: number;
  readonly pollMaxNs: number;
  readonly pollGrow: number;
  readonly pollShrink: number;
  /** Forces an engine: OUTPORT_IO_ENGINE. */
  readonly engine: "io_uring" | "epoll" | undefined;
}

/** An OutportError on its way: a clone of the object itself would lose its class. */
export interface ErrorMessage {
  readonly kind: ErrorKind;
  readonly message: string;
  readonly qapiClass: QapiErrorClass;
}

/** Envelopes on the port. */
export type ToIothread = {
  readonly call: IothreadCall;
  readonly seq: number;
  readonly params: unknown;
};
export type FromIothread =
  | { readonly seq: number; readonly reply: unknown }
  | { readonly seq: number; readonly error: ErrorMessage }
  | { readonly event: IothreadEvent };
