/** Iothreads without threads, for unit tests of what main does with them. */
import type {
  BitmapPlace,
  IothreadCall,
  IothreadCalls,
  IothreadEvent,
  NodeInfo,
  NodeOpen,
  NodePermissions,
  NodesReopen,
} from "../../src/iothread/messages.ts";
import { type Iothread, type Iothreads, MAIN_LOOP } from "../../src/iothread/pool.ts";
import { OutportError } from "../../src/util/error.ts";

const BYTES = 1024 * 1024;

/** Remembers calls, knows which nodes and exports are open, fails when told to. */
export class FakeIothread implements Iothread {
  readonly id: string;
  userCount = 0;
  /** Open nodes: what they were told to use and share. */
  readonly nodes = new Map<string, { used: number; shared: number }>();
  readonly exports = new Set<string>();
  readonly registered = new Set<string>();
  /** Where "export-open" finds bitmaps. */
  bitmapPlaces: readonly BitmapPlace[] = [];
  listening = false;
  /** As they were opened or reopened. */
  readonly definitions = new Map<string, NodeOpen>();
  readonly inactive = new Set<string>();
  /** Reopens that have not ended: what takes them back. */
  readonly reopens = new Map<number, () => void>();
  /** Of "node-flush". */
  flushResult = 0;
  /** Node names of the drained sections that are open. */
  readonly sections = new Map<number, readonly string[]>();
  readonly log: string[] = [];
  /** Throws to make a call fail; may wait. */
  before: (call: IothreadCall, params: never) => void | Promise<void> = () => {};
  /** Connections that "nbd-export-unregister" finds. */
  connectionCount = 0;
  #nextSection = 1;

  constructor(id: string) {
    this.id = id;
  }

  async call<C extends IothreadCall>(
    call: C,
    params: IothreadCalls[C][0],
  ): Promise<IothreadCalls[C][1]> {
    this.log.push(call);
    await this.before(call, params as never);
    return this.#answer(call, params as never) as IothreadCalls[C][1];
  }

  #answer(call: IothreadCall, params: never): unknown {
    switch (call) {
      case "node-open": {
        const { nodeName, readOnly } = params as NodeOpen;
        if (this.nodes.has(nodeName)) throw new Error(`${nodeName} is open already`);
        this.nodes.set(nodeName, { used: 0, shared: 15 });
        this.definitions.set(nodeName, params as NodeOpen);
        if ((params as NodeOpen).active === false) this.inactive.add(nodeName);
        return info(!readOnly);
      }
      case "node-implied":
        return [];
      case "snapshot-take":
        return { id: "1" };
      case "snapshot-delete":
      case "node-backing-file":
        return 0;
      case "node-close": {
        const { nodeName } = params as { nodeName: string };
        if (!this.nodes.delete(nodeName)) throw new Error(`${nodeName} is not open`);
        this.definitions.delete(nodeName);
        this.inactive.delete(nodeName);
        return null;
      }
      case "node-permissions":
        this.#setPermissions((params as { nodes: NodePermissions[] }).nodes);
        return null;
      case "node-flush":
        return { result: this.flushResult };
      case "node-history":
        return {};
      case "nodes-reopen":
        return this.#reopen(params);
      case "nodes-reopen-end": {
        const { reopen, keep } = params as { reopen: number; keep: boolean };
        const undo = this.reopens.get(reopen);
        if (undo === undefined) throw new Error("not reopening");
        this.reopens.delete(reopen);
        if (!keep) undo();
        return null;
      }
      case "nodes-drain": {
        const { nodeNames } = params as { nodeNames: string[] };
        for (const name of nodeNames) {
          if (!this.nodes.has(name)) throw new Error(`${name} is not open`);
        }
        this.sections.set(this.#nextSection, nodeNames);
        return { section: this.#nextSection++ };
      }
      case "nodes-resume": {
        const { section } = params as { section: number };
        if (!this.sections.delete(section)) throw new Error("not drained");
        return null;
      }
      case "nodes-query":
        return (params as { nodeNames: string[] }).nodeNames.map(() => info(true));
      case "nbd-server-start":
        this.listening = true;
        return null;
      case "nbd-server-stop":
        this.listening = false;
        return null;
      default:
        return this.#answerExport(call, params);
    }
  }

  #setPermissions(nodes: readonly NodePermissions[]): void {
    for (const { nodeName, used, shared, active } of nodes) {
      if (!this.nodes.has(nodeName)) throw new Error(`${nodeName} is not open`);
      this.nodes.set(nodeName, { used, shared });
      if (active) this.inactive.delete(nodeName);
      else this.inactive.add(nodeName);
    }
  }

  #reopen({ nodes, permissions, connected }: NodesReopen): unknown {
    const before = [...this.definitions];
    const permissionsBefore = [...this.nodes];
    for (const node of nodes) {
      if (!this.nodes.has(node.nodeName)) throw new Error(`${node.nodeName} is not open`);
      this.definitions.set(node.nodeName, node);
    }
    this.#setPermissions(permissions);
    this.reopens.set(this.#nextSection, () => {
      for (const [name, definition] of before) this.definitions.set(name, definition);
      for (const [name, held] of permissionsBefore) this.nodes.set(name, held);
    });
    const infos = connected.map((name) => info(this.definitions.get(name)?.readOnly === false));
    return { reopen: this.#nextSection++, infos };
  }

  #answerExport(call: IothreadCall, params: never): unknown {
    const { id, exportId, safe } = params as { id: string; exportId: string; safe: boolean };
    if (call === "export-open") {
      this.exports.add(id);
      return { bitmaps: this.bitmapPlaces };
    }
    if (call === "export-close") this.exports.delete(id);
    if (call === "export-shutdown") {
      if (safe && this.connectionCount > 0) throw new OutportError("in-use", "clients");
      return { clientCount: this.connectionCount };
    }
    if (call === "export-suspend") {
      if (!this.exports.delete(id)) throw new Error(`export ${id} is not open`);
      return { handover: id };
    }
    if (call === "export-resume") {
      const { open, handover } = params as { open: { id: string }; handover: string };
      if (handover !== open.id) throw new Error("the handover is another's");
      this.exports.add(open.id);
      return null;
    }
    if (call === "nbd-export-register") this.registered.add(exportId);
    if (call === "nbd-export-unregister") {
      if (safe && this.connectionCount > 0) throw new OutportError("in-use", "clients");
      this.registered.delete(exportId);
      return { connectionCount: this.connectionCount };
    }
    return null;
  }
}

function info(writable: boolean): NodeInfo {
  return { bytes: BYTES, writable, description: {} };
}

export class FakeIothreads implements Iothreads {
  readonly members = new Map<string, FakeIothread>();
  #listeners: ((iothread: Iothread, event: IothreadEvent) => void)[] = [];

  constructor(...ids: string[]) {
    for (const id of [MAIN_LOOP, ...ids]) this.members.set(id, new FakeIothread(id));
  }

  get(id: string): FakeIothread {
    const member = this.members.get(id);
    if (member === undefined) throw new OutportError("not-found", `iothread "${id}" not found`);
    return member;
  }

  onEvent(listener: (iothread: Iothread, event: IothreadEvent) => void): void {
    this.#listeners.push(listener);
  }

  emit(id: string, event: IothreadEvent): void {
    for (const listener of this.#listeners) listener(this.get(id), event);
  }
}

/** The message of the OutportError that `promise` rejects with; anything else is thrown. */
export async function messageOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof OutportError) return error.message;
    throw error;
  }
  return "no error";
}
