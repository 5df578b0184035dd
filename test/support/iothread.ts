/** Iothreads without threads, for unit tests of what main does with them. */
import type {
  IothreadCall,
  IothreadCalls,
  IothreadEvent,
  NodeInfo,
  NodeOpen,
  NodePermissions,
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
  readonly log: string[] = [];
  /** Throws to make a call fail; may wait. */
  before: (call: IothreadCall, params: never) => void | Promise<void> = () => {};
  /** Connections that "nbd-export-unregister" finds. */
  connectionCount = 0;

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
        return info(!readOnly);
      }
      case "node-close": {
        const { nodeName } = params as { nodeName: string };
        if (!this.nodes.delete(nodeName)) throw new Error(`${nodeName} is not open`);
        return null;
      }
      case "node-permissions":
        for (const { nodeName, used, shared } of (params as { nodes: NodePermissions[] }).nodes) {
          if (!this.nodes.has(nodeName)) throw new Error(`${nodeName} is not open`);
          this.nodes.set(nodeName, { used, shared });
        }
        return null;
      case "node-query":
        return info(true);
      case "nbd-server-start":
        return { port: 10809 };
      default:
        return this.#answerExport(call, params);
    }
  }

  #answerExport(call: IothreadCall, params: never): unknown {
    const { id, exportId, safe } = params as { id: string; exportId: string; safe: boolean };
    if (call === "export-open") this.exports.add(id);
    if (call === "export-close") this.exports.delete(id);
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
  return { bytes: BYTES, writable, description: { drv: "fake", ro: !writable } };
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
