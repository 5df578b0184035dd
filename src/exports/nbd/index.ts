/**
 * The NBD server and its exports as main sees them. Clients are met on the built-in iothread, the
 * listening one; an export lives where its node is, and a client that chose it is handed over
 * after the handshake. The listening thread counts the connections of every export. Thread: main.
 * Spec: qapi/block-export.json BlockExportOptionsNbd, nbd-server-start, nbd-server-stop
 */
import { NBD_MAX_STRING_SIZE } from "../../abi/nbd.ts";
import { PERM_RESIZE } from "../../block/node.ts";
import { planListen } from "../../io/listen-plan.ts";
import type { IothreadEvent, NbdAdopt } from "../../iothread/messages.ts";
import { type Iothread, type Iothreads, MAIN_LOOP } from "../../iothread/pool.ts";
import { type BlockDirtyBitmap, blockDirtyBitmapOrStr } from "../../qapi/bitmaps.ts";
import { arrayOf, bool, optional, str } from "../../qapi/scalars.ts";
import type { SocketAddress } from "../../qapi/sockets.ts";
import type { Sockets } from "../../runtime/driver.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { BlockExport, ExportType } from "../export.ts";
import { HostedExports } from "../hosted.ts";
import { type BitmapGraph, BitmapHolds, bitmapRequests } from "./bitmap-requests.ts";
import type { NbdExportInfo, ServedNbdExport } from "./export-table.ts";

/** Members of BlockExportOptionsNbd. */
const nbdExportMembers = {
  name: optional(str, "Name of the export for clients (default: the node's name)"),
  description: optional(str, "Free-form description, up to 4096 bytes"),
  bitmaps: optional(
    arrayOf(blockDirtyBitmapOrStr),
    "Dirty bitmaps that clients may read as metadata contexts",
  ),
  "allocation-depth": optional(
    bool,
    "Offer the metadata context qemu:allocation-depth (default: false)",
  ),
};

interface NbdOptions {
  readonly name?: string;
  readonly description?: string;
  readonly bitmaps?: readonly (string | BlockDirtyBitmap)[];
  readonly "allocation-depth"?: boolean;
}

/** NbdServerOptions, wire names, with the flat form of the address. */
export interface NbdServerStartOptions {
  readonly addr: SocketAddress;
  readonly "handshake-max-seconds"?: number | undefined;
  readonly "max-connections"?: number | undefined;
  readonly "tls-creds"?: string | undefined;
  readonly "tls-authz"?: string | undefined;
}

/** Who asks: the command line may pass file descriptors by number, a monitor may not. */
export type NbdServerStarter = "command-line" | "monitor";

/** QEMU's NBD_DEFAULT_HANDSHAKE_MAX_SECS and its NBD_DEFAULT_MAX_CONNECTIONS. */
const HANDSHAKE_SECONDS_MAX = 10;
const CONNECTIONS_MAX = 100;

interface Running {
  readonly connectionsMax: number;
}

export interface NbdServerParts {
  readonly iothreads: Iothreads;
  readonly resolve: Sockets["resolve"];
  readonly graph: BitmapGraph;
  /** Whether a user's object with this id exists. */
  readonly objectExists: (id: string) => boolean;
  /** Closes all NBD exports, newest first: ExportManager.closeAll("nbd"). */
  readonly closeExports: () => Promise<void>;
}

export class NbdServer {
  readonly exportType: ExportType = {
    name: "nbd",
    members: nbdExportMembers,
    allowsInactive: true,
    create: (exp) => this.#create(exp),
    requestShutdown: (exp, safe) => this.#requestShutdown(exp, safe),
    delete: (exp) => this.#delete(exp),
    suspend: (exp) => this.#suspend(exp),
    resume: (exp) => this.#hosted.resume(exp),
    onReplaced: async (exp, from) => this.#holds.get(exp.id)?.holdFormer(from),
  };
  #parts: NbdServerParts;
  #starting = false;
  #running: Running | null = null;
  #stopping = false;
  /** By name of the export; also of those that are being made. */
  #exportsByName = new Map<string, BlockExport>();
  #hosted = new HostedExports("nbd");
  /** By id of the export. */
  #holds = new Map<string, BitmapHolds>();

  constructor(parts: NbdServerParts) {
    this.#parts = parts;
    parts.iothreads.onEvent((iothread, event) => {
      // A thread that is gone: the process is about to end.
      this.#onEvent(iothread, event).catch((error) => {
        if (!(error instanceof OutportError)) throw error;
      });
    });
  }

  get running(): boolean {
    return this.#running !== null && !this.#stopping;
  }

  /** nbd-server-start, --nbd-server. Throws OutportError in QSD's words. */
  async start(options: NbdServerStartOptions, starter: NbdServerStarter): Promise<void> {
    if (this.#running !== null || this.#starting) {
      throw new OutportError("in-use", "NBD server already running");
    }
    this.#starting = true;
    try {
      await this.#listen(options, starter);
      const creds = options["tls-creds"];
      if (creds !== undefined) {
        await this.#listener.call("nbd-server-stop", {});
        throw this.#noCredentials(creds);
      }
      this.#running = { connectionsMax: options["max-connections"] ?? CONNECTIONS_MAX };
    } finally {
      this.#starting = false;
    }
  }

  /** One more address for the server that runs. */
  async listenAlso(options: NbdServerStartOptions): Promise<void> {
    if (!this.running) throw new OutportError("invalid", "NBD server not running");
    await this.#listen(options, "command-line");
  }

  /** nbd-server-stop: ends its exports, newest first, then listening and handshakes. */
  async stop(): Promise<void> {
    if (!this.running) throw new OutportError("invalid", "NBD server not running");
    this.#stopping = true;
    try {
      await this.#parts.closeExports();
      await this.#listener.call("nbd-server-stop", {});
    } finally {
      this.#running = null;
      this.#stopping = false;
    }
  }

  get #listener(): Iothread {
    return this.#parts.iothreads.get(MAIN_LOOP);
  }

  async #listen(options: NbdServerStartOptions, starter: NbdServerStarter): Promise<void> {
    const connectionsMax = options["max-connections"] ?? CONNECTIONS_MAX;
    const handshakeSecondsMax = options["handshake-max-seconds"] ?? HANDSHAKE_SECONDS_MAX;
    const { resolve } = this.#parts;
    const plan = await planListen(options.addr, resolve, starter === "command-line");
    let failure: unknown;
    for (const addresses of plan.choices) {
      try {
        const start = { addresses, label: plan.label, connectionsMax, handshakeSecondsMax };
        await this.#listener.call("nbd-server-start", start);
        return;
      } catch (error) {
        failure = error;
      }
    }
    throw failure;
  }

  /** There is no kind of credentials yet. */
  #noCredentials(id: string): OutportError {
    return this.#parts.objectExists(id)
      ? new OutportError("invalid", `Object with id '${id}' is not TLS credentials`)
      : new OutportError("not-found", `No TLS credentials with id '${id}'`);
  }

  async #create(exp: BlockExport): Promise<void> {
    const running = this.#running;
    if (running === null || this.#stopping) {
      throw new OutportError("invalid", "NBD server not running");
    }
    const options = exp.options as NbdOptions;
    const name = options.name ?? exp.node.nodeName;
    checkLength("export name", name);
    checkLength("description", options.description ?? "");
    if (this.#exportsByName.has(name)) {
      throw new OutportError("in-use", `NBD server already has export named '${name}'`);
    }
    if (exp.multiThreaded) {
      throw new OutportError("unsupported", "NBD export does not support multi-threading");
    }
    this.#exportsByName.set(name, exp);
    try {
      // Clients know the length from the handshake.
      const { used, shared } = exp.permissions;
      await exp.setPermissions({ used, shared: shared & ~PERM_RESIZE });
      await this.#open(exp, { ...options, name }, running);
    } catch (error) {
      this.#exportsByName.delete(name);
      throw error;
    }
  }

  async #open(exp: BlockExport, options: NbdOptions, running: Running): Promise<void> {
    const { graph } = this.#parts;
    const bitmaps = bitmapRequests(graph, exp.node, options.bitmaps ?? []);
    const info = (await this.#hosted.open(exp, { ...options, bitmaps })) as ServedNbdExport;
    const holds = new BitmapHolds(graph, exp);
    this.#holds.set(exp.id, holds);
    try {
      await holds.hold(info.bitmaps.map(({ nodeName }) => nodeName));
      this.#checkServing(running);
      await this.#listener.call("nbd-export-register", {
        exportId: exp.id,
        info: { ...info, multiConn: running.connectionsMax !== 1 } satisfies NbdExportInfo,
      });
    } catch (error) {
      await this.#close(exp);
      throw error;
    }
    try {
      this.#checkServing(running);
    } catch (error) {
      // Clients may have found it meanwhile.
      await this.#requestShutdown(exp, false);
      await this.#close(exp);
      throw error;
    }
  }

  /** Inside exclusive(). */
  async #close(exp: BlockExport): Promise<void> {
    await this.#hosted.close(exp);
    await this.#holds.get(exp.id)?.release();
    this.#holds.delete(exp.id);
  }

  /** Outside of it. */
  async #delete(exp: BlockExport): Promise<void> {
    await this.#hosted.close(exp);
    await this.#parts.graph.exclusive(async () => this.#holds.get(exp.id)?.release());
    this.#holds.delete(exp.id);
  }

  async #suspend(exp: BlockExport): Promise<void> {
    this.#holds.get(exp.id)?.checkAllTogether();
    await this.#hosted.suspend(exp);
  }

  /** Throws when that server has stopped or is about to. */
  #checkServing(running: Running): void {
    if (this.#running === running && !this.#stopping) return;
    throw new OutportError("invalid", "NBD server not running");
  }

  async #requestShutdown(exp: BlockExport, safe: boolean): Promise<number> {
    const unregister = { exportId: exp.id, safe };
    const { connectionCount } = await this.#listener.call("nbd-export-unregister", unregister);
    for (const [name, other] of this.#exportsByName) {
      if (other === exp) this.#exportsByName.delete(name);
    }
    this.#hosted.setClosing(exp);
    return connectionCount;
  }

  async #onEvent(iothread: Iothread, event: IothreadEvent): Promise<void> {
    if (event.event === "nbd-released") {
      await this.#listener.call("nbd-release", { exportId: event.exportId, closeFd: null });
      return;
    }
    if (event.event !== "nbd-adopt") return;
    assert(iothread.id === MAIN_LOOP, "only the listening thread gives connections away");
    await this.#onAdopt(event.adopt);
  }

  async #onAdopt(adopt: NbdAdopt): Promise<void> {
    const { exportId, fd } = adopt;
    const hosted = this.#hosted.find(exportId);
    while (hosted !== undefined && hosted.move !== null) await hosted.move;
    try {
      if (hosted === undefined) throw new OutportError("not-found", "The export is gone");
      await hosted.exp.node.iothread.call("nbd-adopt", adopt);
    } catch {
      // The export went away meanwhile.
      await this.#listener.call("nbd-release", { exportId, closeFd: fd });
    }
  }
}

function checkLength(what: string, text: string): void {
  if (new TextEncoder().encode(text).length <= NBD_MAX_STRING_SIZE) return;
  throw new OutportError("invalid", `${what} '${text}' too long`);
}
