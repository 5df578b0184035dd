/**
 * What main asks of an iothread, and what it answers: the only way in which the two meet.
 * Everything here is structured-cloneable; wire names of QAPI stay as they are inside `options`.
 * Thread: both.
 */
import type { BlockDirtyInfo } from "../qapi/block.ts";
import type { BlockDeviceStats } from "../qapi/block-stats.ts";
import type { ErrorKind, QapiErrorClass } from "../util/error.ts";
import type { LogLevel, LogRecord } from "../util/log.ts";
import type { TraceState } from "../util/trace.ts";

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
  readonly active?: boolean;
  /** See BlockDriver.bind(). */
  readonly bound?: unknown;
  /** The master key, if the image is encrypted; wiped when it is open. See ImageLock. */
  readonly key?: Uint8Array;
  /** Of a node that comes from another iothread: see BlockNode.handOver(). */
  readonly handedOver?: unknown;
}

/** What a passphrase must open to get at an encrypted image: see crypto/luks-lock.ts. */
export interface ImageLock {
  /** Checked. */
  readonly header: Uint8Array;
  /** Of each key slot: null when it is not in use, or why it can't be read. */
  readonly materials: readonly (Uint8Array | string | null)[];
}

/** A child that an image names, as options of BlockdevOptions; not checked. */
export interface ImpliedChild {
  readonly role: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** Why what the image says can't be had. */
  readonly failure?: string;
}

/** What only the open node knows of what query-named-block-nodes tells. */
export interface NodeDescription {
  /** Opens the same image if nothing else is given; missing when no file name alone does. */
  readonly exactFilename?: string;
  /** Allocated; missing when the driver can't say. */
  readonly actualBytes?: number;
  /** Members of ImageInfo that the driver finds out, wire names: "dirty-flag", ... */
  readonly image?: Readonly<Record<string, unknown>>;
  /** Members of BlockLimitsInfo, wire names. */
  readonly limits?: Readonly<Record<string, number>>;
}

/** What main keeps of an open node. */
export interface NodeInfo {
  readonly bytes: number;
  readonly writable: boolean;
  readonly description: NodeDescription;
  /** Of its dirty bitmaps, the newest first; missing: it has none. */
  readonly dirtyBitmaps?: readonly BlockDirtyInfo[];
}

export interface NodePermissions {
  readonly nodeName: string;
  /** PERM_* bits of block/node.ts, over all parents. */
  readonly used: number;
  readonly shared: number;
  readonly active: boolean;
}

/** Nodes with new options or children; see block/node-reopen.ts. */
export interface NodesReopen {
  /** Children before their parents. */
  readonly nodes: readonly NodeOpen[];
  /** Of these and others: what changes. */
  readonly permissions: readonly NodePermissions[];
  /** All whose length may follow, children first. */
  readonly connected: readonly string[];
  /** Those who use a node from outside, and follow, use another one. */
  readonly users?: { readonly from: string; readonly to: string };
}

/** Of blockdev-create. */
export interface ImageCreate {
  readonly jobId: string;
  readonly driver: string;
  /** Members of BlockdevCreateOptions but the nodes, checked, wire names. */
  readonly options: Readonly<Record<string, unknown>>;
  /** By member, what the image is made on; long enough. */
  readonly targets: Readonly<Record<string, { nodeName: string; filename: string }>>;
  /** See ImageCreation.prepare(). */
  readonly prepared?: unknown;
  /** See CreateContext. */
  readonly servedDevices: readonly number[];
}

export interface NodeTruncate {
  readonly nodeName: string;
  readonly bytes: number;
  /** Does nothing to a node that is longer. */
  readonly atLeast?: boolean;
  /** The node and all whose length may follow, children first. */
  readonly connected: readonly string[];
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

/** TCP keep-alive probes; 0 stands for the kernel's default. */
export interface KeepAlive {
  readonly count: number;
  readonly idleSeconds: number;
  readonly intervalSeconds: number;
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
      readonly keepAlive: KeepAlive | null;
      /** Multi-path TCP. */
      readonly mptcp: boolean;
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

/** What a node was asked for, wire names. */
export interface NodeStatistics {
  /** BlockDeviceStats */
  readonly stats: BlockDeviceStats;
  /** BlockStatsSpecific but for the driver's name; null when the driver has nothing to tell. */
  readonly driverSpecific: Readonly<Record<string, number>> | null;
}

/** What a node takes along to another iothread beyond its definition. */
export interface NodeHistory {
  /** See BlockNode.handOver(). */
  readonly handedOver: unknown;
  readonly statistics: SavedStatistics;
  readonly writeThreshold: number;
  /** The newest first. */
  readonly bitmaps: readonly SavedBitmap[];
}

export type { BlockDirtyInfo };

/** Bits of a dirty bitmap; see HBitmapContent of bitmaps/hbitmap.ts. */
export interface BitmapContent {
  readonly bytes: number;
  readonly granularity: number;
  readonly chunks: readonly (Uint32Array | null)[];
}

/** A dirty bitmap with all its states. */
export interface SavedBitmap {
  readonly name: string;
  readonly enabled: boolean;
  readonly busy: boolean;
  readonly persistent: boolean;
  readonly inconsistent: boolean;
  readonly readOnly: boolean;
  readonly content: BitmapContent;
}

export interface BitmapPlace {
  readonly nodeName: string;
  readonly name: string;
}

/** A bitmap of the same iothread, or what is in one of another. */
export type BitmapMergeSource = BitmapPlace | { readonly content: BitmapContent };

/** A change to the dirty bitmaps of a node. */
export type BitmapAction = BitmapPlace &
  (
    | {
        readonly type: "add";
        readonly granularity: number;
        readonly persistent: boolean;
        readonly enabled: boolean;
      }
    | { readonly type: "remove" | "clear" | "enable" | "disable" }
    | { readonly type: "merge"; readonly sources: readonly BitmapMergeSource[] }
  );

/** Of Float64Array: counts by OP_*. */
export interface SavedStatistics {
  readonly operations: Float64Array;
  readonly failed: Float64Array;
  readonly bytes: Float64Array;
  readonly timeNs: Float64Array;
  /** Since the last request; null before the first. */
  readonly idleNs: number | null;
  readonly highestWrite: number;
}

/** Calls of main to an iothread: name → [parameters, reply]. A reply may be an OutportError. */
export interface IothreadCalls {
  "node-open": [NodeOpen, NodeInfo];
  /** Before "node-open", with the "file" child only: see BlockDriver.impliedChildren(). */
  "node-implied": [NodeOpen, readonly ImpliedChild[]];
  /** Before "node-open", with all children: see BlockDriver.encryption. Null: it has no lock. */
  "node-lock": [NodeOpen, ImageLock | null];
  /** Flushes a writable node, closes it. Its parents are closed already. */
  "node-close": [{ nodeName: string }, null];
  /**
   * All of them or none. Children after their parents. `handedOver`: the nodes are still open
   * with the same permissions on another iothread.
   */
  "node-permissions": [{ nodes: readonly NodePermissions[]; handedOver?: boolean }, null];
  /** 0 or -errno. */
  "node-flush": [{ nodeName: string }, { result: number }];
  /** In a drained section. Replies the info of each of `connected`; "nodes-reopen-end" follows. */
  "nodes-reopen": [NodesReopen, { reopen: number; infos: readonly NodeInfo[] }];
  /** Keeps all of it, or takes all of it back. */
  "nodes-reopen-end": [{ reopen: number; keep: boolean }, null];
  /** An internal snapshot, in a drained section: its id, or -errno. */
  "snapshot-take": [
    { nodeName: string; name: string; timeUs: number },
    { readonly id: string } | number,
  ];
  /** 0 or -errno. In a drained section. */
  "snapshot-delete": [{ nodeName: string; id: string; name: string }, number];
  /** change-backing-file: 0 or -errno. In a drained section. */
  "node-backing-file": [{ nodeName: string; backingFile: string; format: string }, number];
  "nodes-query": [{ nodeNames: readonly string[] }, readonly NodeInfo[]];
  "nodes-statistics": [{ nodeNames: readonly string[] }, readonly NodeStatistics[]];
  /** block_resize, in a drained section. Replies the info of each of `connected`. */
  "node-truncate": [NodeTruncate, readonly NodeInfo[]];
  /** The answer to an event "node-resize": 0 or -errno. */
  "node-resized": [{ request: number; result: number }, null];
  /** Fails when it was cancelled meanwhile. */
  "image-create": [ImageCreate, null];
  /** After "image-create", which may have ended. */
  "image-create-cancel": [{ jobId: string }, null];
  /** `offset` 0: none. */
  "node-write-threshold": [{ nodeName: string; offset: number }, null];
  /** For a node that moves: nobody uses it. */
  "node-history": [{ nodeName: string }, NodeHistory];
  "node-history-restore": [{ nodeName: string; history: NodeHistory }, null];
  /** In a drained section. It has taken effect; "bitmap-settle" follows. */
  "bitmap-action": [{ action: BitmapAction }, { undo: number }];
  /** Keeps what an action did, or takes it back. */
  "bitmap-settle": [{ undo: number; keep: boolean }, null];
  "bitmap-content": [BitmapPlace, { content: BitmapContent }];
  "bitmap-sha256": [BitmapPlace, { sha256: string }];
  /** No request is in flight on these nodes when it replies, and none starts until the resume. */
  "nodes-drain": [{ nodeNames: readonly string[] }, { section: number }];
  "nodes-resume": [{ section: number }, null];
  /** Ready to serve when it returns. The reply is the type's own. */
  "export-open": [ExportOpen, unknown];
  /**
   * It takes no more clients. `safe`: refuses with kind in-use while it has one, and nothing
   * changes. Types whose clients come in elsewhere don't know it.
   */
  "export-shutdown": [{ id: string; safe: boolean }, ShutdownReply];
  /** Stops serving: drops the clients, lets requests in flight finish, flushes, forgets it. */
  "export-close": [{ id: string }, null];
  /**
   * Takes the export and its clients away from the thread, for "export-resume" there or elsewhere.
   * Refuses with kind in-use when clients don't come to the end of a request; nothing changes then.
   */
  "export-suspend": [{ id: string }, { handover: unknown }];
  /** Serves again, after "export-suspend". Does not fail. */
  "export-resume": [{ open: ExportOpen; handover: unknown }, null];
  "nbd-server-start": [NbdServerStart, null];
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
  "polling-configure": [PollingParameters, null];
  /** What the thread traces from now on. */
  "trace-set": [TraceState, null];
  /** Closes everything, then the thread returns. */
  stop: [Record<string, never>, null];
}
export type IothreadCall = keyof IothreadCalls;

/** One async handler for each of some calls. */
export type IothreadHandlersOf<Calls extends IothreadCall> = {
  readonly [C in Calls]: (params: IothreadCalls[C][0]) => Promise<IothreadCalls[C][1]>;
};

export interface ShutdownReply {
  readonly clientCount: number;
  /** The type's own. */
  readonly details?: unknown;
}

/** What the listening thread knows of an NBD export. */
export interface NbdExportRegister {
  readonly exportId: string;
  /** NbdExportInfo of exports/nbd: what clients learn of it. */
  readonly info: unknown;
}

/** A connection that finished its handshake for an export that is elsewhere. */
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
  | { readonly event: "log"; readonly record: LogRecord }
  /** From the listening thread: a client chose an export that does not live there. */
  | { readonly event: "nbd-adopt"; readonly adopt: NbdAdopt }
  /** A write reached beyond the threshold of a node, which has none any more. */
  | {
      readonly event: "write-threshold";
      readonly nodeName: string;
      readonly amountExceeded: number;
      readonly writeThreshold: number;
    }
  /** A client of an export asks for another length of the node: "node-resized" answers. */
  | {
      readonly event: "node-resize";
      readonly request: number;
      readonly nodeName: string;
      readonly bytes: number;
      /** Not less than it has by then. */
      readonly atLeast: boolean;
    }
  /** The mount of a FUSE export is gone, or its session can't go on: `error` is the -errno. */
  | { readonly event: "fuse-ended"; readonly exportId: string; readonly error: number }
  /** For BLOCK_IMAGE_CORRUPTED. */
  | {
      readonly event: "image-corrupted";
      readonly nodeName: string;
      readonly message: string;
      /** Nothing can be done with the node any more. */
      readonly fatal: boolean;
      readonly offset?: number;
      readonly bytes?: number;
    }
  /** An adopted connection ended, on the thread of its export. */
  | { readonly event: "nbd-released"; readonly exportId: string };

/** How an iothread polls before it sleeps: see AdaptivePolling. */
export interface PollingParameters {
  readonly pollMaxNs: number;
  readonly pollGrow: number;
  readonly pollShrink: number;
}

/** What a new iothread gets as its `data`. */
export interface IothreadStart extends PollingParameters {
  /** Object id, or MAIN_LOOP of pool.ts for the one built in. */
  readonly id: string;
  /** An eventfd, written after each message to the thread. */
  readonly wakeFd: number;
  /** Forces an engine: OUTPORT_IO_ENGINE. */
  readonly engine: "io_uring" | "epoll" | undefined;
  /** What is less severe is not worth a message. */
  readonly logLevel: LogLevel;
  readonly trace: TraceState;
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
