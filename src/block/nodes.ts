/** The open nodes of one iothread. Main keeps the graph and says what is open. Thread: iothread. */

import type { Reactor } from "../io/reactor.ts";
import type {
  IothreadHandlersOf,
  NodeInfo,
  NodeOpen,
  NodePermissions,
} from "../iothread/messages.ts";
import { strerror } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import type { BlockDriver, Permissions } from "./driver.ts";
import type { BlockNode } from "./node.ts";
import { NO_PERMISSIONS } from "./permissions.ts";

interface Entry {
  readonly node: BlockNode;
  permissions: Permissions;
}

export interface NodeTableParts {
  readonly reactor: Reactor;
  readonly drivers: readonly BlockDriver[];
  readonly log: (text: string) => void;
}

export class NodeTable {
  #reactor: Reactor;
  #drivers: ReadonlyMap<string, BlockDriver>;
  #log: (text: string) => void;
  #entries = new Map<string, Entry>();

  constructor({ reactor, drivers, log }: NodeTableParts) {
    this.#reactor = reactor;
    this.#drivers = new Map(drivers.map((driver) => [driver.name, driver]));
    this.#log = log;
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<
    "node-open" | "node-close" | "node-permissions" | "node-query"
  > = {
    "node-open": (params) => this.#open(params),
    "node-close": async ({ nodeName }) => {
      await this.#close(nodeName);
      return null;
    },
    "node-permissions": async ({ nodes }) => {
      await this.#setPermissions(nodes);
      return null;
    },
    "node-query": async ({ nodeName }) => infoOf(this.get(nodeName)),
  };

  get(nodeName: string): BlockNode {
    return this.#entry(nodeName).node;
  }

  /** Closes all that is left, parents first. */
  async closeAll(): Promise<void> {
    for (const nodeName of [...this.#entries.keys()].reverse()) await this.#close(nodeName);
  }

  #entry(nodeName: string): Entry {
    const entry = this.#entries.get(nodeName);
    assert(entry !== undefined, `node '${nodeName}' is open`);
    return entry;
  }

  async #open(params: NodeOpen): Promise<NodeInfo> {
    const { nodeName } = params;
    assert(!this.#entries.has(nodeName), `node '${nodeName}' is opened once`);
    const driver = this.#drivers.get(params.driver);
    assert(driver !== undefined, "main knows the same drivers");
    const children: Record<string, BlockNode> = {};
    for (const [role, name] of Object.entries(params.children)) children[role] = this.get(name);
    const node = await driver.open({ ...params, reactor: this.#reactor, children });
    this.#entries.set(nodeName, { node, permissions: NO_PERMISSIONS });
    return infoOf(node);
  }

  async #close(nodeName: string): Promise<void> {
    const { node } = this.#entry(nodeName);
    // At once: nobody may find a node that is closing.
    this.#entries.delete(nodeName);
    const result = node.writable ? await node.flush() : 0;
    if (result < 0) this.#log(`Could not flush node '${nodeName}': ${strerror(-result)}`);
    await node.close();
  }

  /** All or none. */
  async #setPermissions(nodes: readonly NodePermissions[]): Promise<void> {
    const done: { entry: Entry; before: Permissions }[] = [];
    try {
      for (const { nodeName, used, shared } of nodes) {
        const entry = this.#entry(nodeName);
        await entry.node.setPermissions(used, shared);
        done.push({ entry, before: entry.permissions });
        entry.permissions = { used, shared };
      }
    } catch (error) {
      for (const { entry, before } of done.reverse()) await this.#restore(entry, before);
      throw error;
    }
  }

  /** What a node had it can have again, unless the host itself has changed its mind meanwhile. */
  async #restore(entry: Entry, before: Permissions): Promise<void> {
    try {
      await entry.node.setPermissions(before.used, before.shared);
    } catch (error) {
      this.#log(`Could not restore the permissions of node '${entry.node.nodeName}': ${error}`);
    }
    entry.permissions = before;
  }
}

function infoOf(node: BlockNode): NodeInfo {
  return { bytes: node.bytes, writable: node.writable, description: node.describe() };
}
