/**
 * Drained sections on an iothread: nothing is in flight on the nodes of a section, and nothing
 * starts. What transports still have to send is none of its business: a client that doesn't read
 * holds up nobody. Thread: iothread.
 */
import { fitBitmaps } from "../bitmaps/node-bitmaps.ts";
import type { Reactor } from "../io/reactor.ts";
import type { IothreadHandlersOf } from "../iothread/messages.ts";
import { assert } from "../util/error.ts";
import type { BlockBackend } from "./backend.ts";
import type { BlockNode } from "./node.ts";

const registries = new WeakMap<Reactor, Set<BlockBackend>>();

/** The open backends of an iothread: each adds and removes itself. */
export function backendsOf(reactor: Reactor): Set<BlockBackend> {
  let backends = registries.get(reactor);
  if (backends === undefined) {
    backends = new Set();
    registries.set(reactor, backends);
  }
  return backends;
}

export interface DrainsParts {
  readonly reactor: Reactor;
  /** Undefined when it is not open. */
  readonly findNode: (nodeName: string) => BlockNode | undefined;
}

interface Section {
  readonly nodes: readonly BlockNode[];
  readonly backends: readonly BlockBackend[];
}

/** The drained sections of one iothread; they may overlap. */
export class Drains {
  #parts: DrainsParts;
  #sections = new Map<number, Section>();
  #nextSection = 1;

  constructor(parts: DrainsParts) {
    this.#parts = parts;
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<"nodes-drain" | "nodes-resume"> = {
    "nodes-drain": async ({ nodeNames }) => ({ section: await this.#drain(nodeNames) }),
    "nodes-resume": async ({ section }) => {
      this.#resume(section);
      return null;
    },
  };

  async #drain(nodeNames: readonly string[]): Promise<number> {
    const { reactor, findNode } = this.#parts;
    const nodes: BlockNode[] = [];
    for (const nodeName of nodeNames) {
      const node = findNode(nodeName);
      assert(node !== undefined, `node '${nodeName}' is open`);
      nodes.push(node);
    }
    const backends = [...backendsOf(reactor)].filter(({ node }) => nodes.includes(node));
    const section = this.#nextSection++;
    this.#sections.set(section, { nodes, backends });
    // First, so that what waits in a node gets on.
    for (const node of nodes) node.drainBegin?.();
    await Promise.all(backends.map((backend) => backend.drain()));
    return section;
  }

  #resume(number: number): void {
    const section = this.#sections.get(number);
    assert(section !== undefined, "a drained section ends once");
    this.#sections.delete(number);
    for (const node of [...section.nodes].reverse()) {
      if (this.#parts.findNode(node.nodeName) !== node) continue;
      fitBitmaps(node);
      node.drainEnd?.();
    }
    // A backend that was closed meanwhile stays drained for good.
    for (const backend of section.backends) backend.resume();
  }
}
