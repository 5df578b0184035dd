/**
 * NBD on one iothread: the exports that live here with their connections and, on the listening
 * thread, the server and the table of all exports of the process. The listening thread counts the
 * connections of each export, wherever they are served: that count decides whether an export may
 * be deleted safely, and whether another client may come. Thread: iothread.
 */
import { SHUT_RDWR } from "../../abi/linux-socket.ts";
import { NBD_MAX_BUFFER_SIZE } from "../../abi/nbd.ts";
import type { DirtyBitmap } from "../../bitmaps/dirty-bitmap.ts";
import { BlockBackend } from "../../block/backend.ts";
import { type BlockNode, OP_FLUSH } from "../../block/node.ts";
import { blockBytesOf } from "../../block/permissions.ts";
import type { Reactor } from "../../io/reactor.ts";
import type {
  BitmapPlace,
  ExportOpen,
  IothreadEvent,
  IothreadHandlersOf,
  NbdAdopt,
  NbdExportRegister,
} from "../../iothread/messages.ts";
import { EBUSY, strerror } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { ExportService } from "../registry.ts";
import type { BitmapRequest } from "./bitmap-requests.ts";
import { NbdConnections } from "./connections.ts";
import { type NbdClient, NbdExport } from "./export.ts";
import { bitmapsAt, placeBitmaps } from "./export-bitmaps.ts";
import { type NbdExportInfo, NbdExports, type ServedNbdExport } from "./export-table.ts";
import type { Session } from "./handshake.ts";
import { ALLOCATION_DEPTH, BASE_ALLOCATION, bitmapContext } from "./meta-context.ts";
import { IothreadNbdServer, type NbdEntrant } from "./server.ts";

const BLOCK_BYTES_PREFERRED = 4096;
/** To come between two requests of all clients, with some service in between. */
const SUSPEND_ATTEMPTS = 10;
const SUSPEND_PAUSE_NS = 20_000_000;
/** An export is whole sectors. */
const SECTOR_BYTES = 512;

export interface NbdServiceParts {
  readonly reactor: Reactor;
  readonly findNode: (nodeName: string) => BlockNode;
  readonly send: (event: IothreadEvent) => void;
  readonly log: Log;
}

/** An export on its way from one thread to another. */
interface Handover {
  /** What its clients were told. */
  readonly info: ServedNbdExport;
  readonly clients: readonly NbdClient[];
}

/** An export that lives here. */
interface OpenExport {
  readonly info: ServedNbdExport;
  readonly exp: NbdExport;
  readonly backend: BlockBackend;
  readonly bitmaps: readonly DirtyBitmap[];
  /** Connections adopted and not yet released. */
  heldCount: number;
}

type NbdCalls =
  | "nbd-server-start"
  | "nbd-server-stop"
  | "nbd-export-register"
  | "nbd-export-unregister"
  | "nbd-adopt"
  | "nbd-release";

export class NbdService implements ExportService {
  readonly type = "nbd";
  #parts: NbdServiceParts;
  #connections: NbdConnections;
  #open = new Map<string, OpenExport>();

  // Of the listening thread.
  #server: IothreadNbdServer | null = null;
  #table = new NbdExports();
  /** By export id. */
  #registered = new Map<string, NbdExportRegister & { readonly info: NbdExportInfo }>();
  /** By export id; also of exports that have left the table. */
  #connectionCounts = new Map<string, number>();

  constructor(parts: NbdServiceParts) {
    this.#parts = parts;
    this.#connections = new NbdConnections(parts.reactor);
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<NbdCalls> = {
    "nbd-server-start": async (options) => {
      const server = this.#serverMade();
      if (server.running) server.listenAlso(options.addresses);
      else server.start(options);
      return null;
    },
    "nbd-server-stop": async () => {
      await this.#serverMade().stop();
      return null;
    },
    "nbd-export-register": async (register) => {
      const info = register.info as NbdExportInfo;
      this.#table.add(info);
      this.#registered.set(register.exportId, { ...register, info });
      return null;
    },
    "nbd-export-unregister": async ({ exportId, safe }) => this.#unregister(exportId, safe),
    "nbd-adopt": async (adopt) => {
      const open = this.#open.get(adopt.exportId);
      if (open === undefined) throw new OutportError("not-found", "The export is gone");
      this.#adopt(open, { ...adopt, session: adopt.session as Session });
      return null;
    },
    "nbd-release": async ({ exportId, closeFd }) => {
      if (closeFd !== null) this.#drop(closeFd);
      this.#release(exportId);
      return null;
    },
  };

  /** Replies the export's ServedNbdExport. */
  async open(params: ExportOpen): Promise<ServedNbdExport> {
    const { findNode } = this.#parts;
    const requests = (params.options.bitmaps ?? []) as readonly BitmapRequest[];
    const bitmaps = placeBitmaps(requests, !params.writable, findNode);
    const info = infoOf(params, findNode(params.nodeName), bitmaps);
    for (const bitmap of this.#serve(params, info).bitmaps) bitmap.busy = true;
    return info;
  }

  async suspend(id: string): Promise<Handover> {
    const { info, exp, backend } = this.#openExport(id);
    // Clients hear of a flush that fails: what the node remembers of it would be lost on the way.
    const flush = async (): Promise<number> =>
      backend.writable ? backend.request(OP_FLUSH, 0, 0, 0, 0) : 0;
    // Requests that wait for a limit go on at once.
    backend.node.drainBegin?.();
    const result = (await this.#suspend(exp)) ? await flush() : -EBUSY;
    backend.node.drainEnd?.();
    if (result < 0) {
      if (exp.suspended) exp.resume();
      throw new OutportError("in-use", `Export '${id}' stays: ${strerror(-result)}`);
    }
    this.#open.delete(id);
    const clients = exp.handOver();
    await backend.close();
    return { info, clients };
  }

  async resume(params: ExportOpen, handover: unknown): Promise<void> {
    const { info, clients } = handover as Handover;
    const open = this.#serve(params, info);
    for (const client of clients) this.#adopt(open, client);
  }

  async close(id: string): Promise<void> {
    const { exp, backend, bitmaps } = this.#openExport(id);
    // From here on nobody is adopted.
    this.#open.delete(id);
    backend.hurry();
    await exp.closeConnections();
    for (const bitmap of bitmaps) bitmap.busy = false;
    const result = await backend.close();
    if (result < 0) {
      this.#parts.log("error", `Could not flush export '${id}': ${strerror(-result)}`);
    }
  }

  /** Ends listening and handshakes, if it listens. */
  async stop(): Promise<void> {
    if (this.#server?.running === true) await this.#server.stop();
  }

  /** A client may be waiting for a reply to the one before it sends the rest of another request. */
  async #suspend(exp: NbdExport): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      if (await exp.suspend()) return true;
      if (attempt === SUSPEND_ATTEMPTS) return false;
      await this.#parts.reactor.sleep(SUSPEND_PAUSE_NS);
    }
  }

  #serve({ id, nodeName, writable, writethrough }: ExportOpen, info: ServedNbdExport): OpenExport {
    const { reactor, findNode } = this.#parts;
    const backend = new BlockBackend(reactor, findNode(nodeName), { writable, writethrough });
    const connections = this.#connections;
    const bitmaps = bitmapsAt(info.bitmaps, findNode);
    const { bytes, readOnly } = info;
    const exp = new NbdExport({ connections, backend, bytes, readOnly, bitmaps });
    const open: OpenExport = { info, exp, backend, bitmaps, heldCount: 0 };
    exp.onConnectionsChanged = () => this.#releaseEnded(id, open);
    this.#open.set(id, open);
    return open;
  }

  #openExport(id: string): OpenExport {
    const open = this.#open.get(id);
    assert(open !== undefined, `export '${id}' lives here`);
    return open;
  }

  #serverMade(): IothreadNbdServer {
    const { reactor, log } = this.#parts;
    this.#server ??= new IothreadNbdServer({
      reactor,
      exports: this.#table,
      onSession: (entrant) => this.#onSession(entrant),
      log,
    });
    return this.#server;
  }

  #unregister(exportId: string, safe: boolean): { connectionCount: number } {
    const connectionCount = this.#connectionCounts.get(exportId) ?? 0;
    if (safe && connectionCount > 0) {
      throw new OutportError("in-use", `Export '${exportId}' has ${connectionCount} clients`);
    }
    const registered = this.#registered.get(exportId);
    assert(registered !== undefined, `export '${exportId}' is registered`);
    this.#registered.delete(exportId);
    this.#table.remove(registered.info.name);
    return { connectionCount };
  }

  /** A client has chosen its export: takes it to where that lives. */
  #onSession({ fd, session, early }: NbdEntrant): void {
    const { exportId } = session;
    if (!this.#registered.has(exportId)) {
      // It left the table while the client got its last reply.
      this.#drop(fd);
      this.#serverMade().release();
      return;
    }
    this.#connectionCounts.set(exportId, (this.#connectionCounts.get(exportId) ?? 0) + 1);
    const open = this.#open.get(exportId);
    if (open !== undefined && !open.exp.suspended) {
      this.#adopt(open, { fd, session, early });
      return;
    }
    // The bytes may be a part of a larger array, all of which would go along.
    const adopt: NbdAdopt = { fd, exportId, session, early: early.slice() };
    this.#parts.send({ event: "nbd-adopt", adopt });
  }

  #adopt(open: OpenExport, client: NbdClient): void {
    open.heldCount++;
    open.exp.adopt(client);
  }

  /** The number of connections of an export that lives here has changed. */
  #releaseEnded(exportId: string, open: OpenExport): void {
    for (; open.heldCount > open.exp.connectionCount; open.heldCount--) {
      if (this.#connectionCounts.has(exportId)) this.#release(exportId);
      else this.#parts.send({ event: "nbd-released", exportId });
    }
  }

  /** A connection that entered here has ended, wherever it was served. */
  #release(exportId: string): void {
    const count = this.#connectionCounts.get(exportId) ?? 0;
    assert(count > 0, "a connection is released once");
    this.#parts.log("info", "client disconnected", { export: exportId });
    if (count > 1) this.#connectionCounts.set(exportId, count - 1);
    else this.#connectionCounts.delete(exportId);
    this.#serverMade().release();
  }

  #drop(fd: number): void {
    const { linux } = this.#parts.reactor;
    // At once, even if some other part of the process holds the socket.
    linux.shutdown(fd, SHUT_RDWR);
    linux.close(fd);
  }
}

function infoOf(
  { id, writable, options }: ExportOpen,
  node: BlockNode,
  bitmaps: readonly BitmapPlace[],
): ServedNbdExport {
  const { transferBytesMax } = node.limits;
  const min = blockBytesOf(node.limits);
  const contexts = [BASE_ALLOCATION];
  if (options["allocation-depth"] === true) contexts.push(ALLOCATION_DEPTH);
  contexts.push(...bitmaps.map(({ name }, index) => bitmapContext(index, name)));
  return {
    id,
    name: options.name as string,
    description: options.description as string | undefined,
    bytes: node.bytes - (node.bytes % SECTOR_BYTES),
    readOnly: !writable,
    multiConn: true,
    blockSize: {
      min,
      preferred: Math.max(BLOCK_BYTES_PREFERRED, min),
      max: Math.min(transferBytesMax, NBD_MAX_BUFFER_SIZE),
    },
    contexts,
    bitmaps,
  };
}
