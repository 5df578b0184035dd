/**
 * The vhost-user-blk exports of one iothread. Thread: iothread.
 * Spec: qapi/block-export.json BlockExportOptionsVhostUserBlk
 */
import { BlockBackend } from "../../block/backend.ts";
import type { BlockNode } from "../../block/node.ts";
import { closeListener, type Listener, openListener } from "../../io/listen.ts";
import type { Reactor } from "../../io/reactor.ts";
import type { ExportOpen, ListenAddress, ShutdownReply } from "../../iothread/messages.ts";
import { strerror } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { ExportService } from "../registry.ts";
import { EventFds } from "./event-fds.ts";
import { type ServerState, VhostUserServer } from "./server.ts";

/** ExportOpen.options of this type. */
export interface VhostUserBlkOptions {
  readonly address: ListenAddress;
  readonly blockBytes: number;
  readonly queueCount: number;
  readonly serial: string;
}

export interface VhostUserBlkServiceParts {
  readonly reactor: Reactor;
  readonly findNode: (nodeName: string) => BlockNode;
  readonly log: Log;
}

/** What an export takes along to another thread. */
interface Handover {
  readonly listener: Listener;
  readonly state: ServerState | null;
}

/** An export that lives here. */
interface OpenExport {
  readonly listener: Listener;
  readonly backend: BlockBackend;
  readonly server: VhostUserServer;
}

export class VhostUserBlkService implements ExportService {
  readonly type = "vhost-user-blk";
  #parts: VhostUserBlkServiceParts;
  #eventFds: EventFds | null = null;
  #open = new Map<string, OpenExport>();

  constructor(parts: VhostUserBlkServiceParts) {
    this.#parts = parts;
  }

  async open(params: ExportOpen): Promise<null> {
    const { linux } = this.#parts.reactor;
    const { address } = optionsOf(params);
    this.#serve(params, { listener: openListener(linux, address), state: null });
    return null;
  }

  shutdown(id: string, safe: boolean): ShutdownReply {
    const { server } = this.#find(id);
    // QSD differs: it takes the disk away from a guest that uses it.
    if (safe && server.hasClient) throw new OutportError("in-use", `Export '${id}' has a client`);
    server.stopAccepting();
    return { clientCount: server.hasClient ? 1 : 0 };
  }

  async close(id: string): Promise<void> {
    const { reactor, log } = this.#parts;
    const { listener, backend, server } = this.#take(id);
    backend.hurry();
    await server.stop();
    closeListener(reactor.linux, listener);
    const result = await backend.close();
    if (result < 0) log("error", `Could not flush export '${id}': ${strerror(-result)}`);
  }

  async suspend(id: string): Promise<Handover> {
    const { listener, backend, server } = this.#find(id);
    const state = await server.suspend();
    this.#open.delete(id);
    await backend.close();
    return { listener, state };
  }

  async resume(params: ExportOpen, handover: unknown): Promise<void> {
    this.#serve(params, handover as Handover);
  }

  #serve(params: ExportOpen, { listener, state }: Handover): void {
    const { reactor, findNode, log } = this.#parts;
    const { id, nodeName, writable, writethrough } = params;
    const backend = new BlockBackend(reactor, findNode(nodeName), { writable, writethrough });
    this.#eventFds ??= new EventFds(reactor);
    const server = new VhostUserServer({
      ...optionsOf(params),
      reactor,
      eventFds: this.#eventFds,
      backend,
      exportId: id,
      listenFd: listener.fd,
      state,
      log,
    });
    backend.onResized = () => server.resized();
    this.#open.set(id, { listener, backend, server });
    server.start();
  }

  #find(id: string): OpenExport {
    const open = this.#open.get(id);
    assert(open !== undefined, `export '${id}' lives here`);
    return open;
  }

  #take(id: string): OpenExport {
    const open = this.#find(id);
    this.#open.delete(id);
    return open;
  }
}

function optionsOf({ options }: ExportOpen): VhostUserBlkOptions {
  return options as unknown as VhostUserBlkOptions;
}
