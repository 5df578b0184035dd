/**
 * Every export of the process, of all types: adds, deletes and lists them. Thread: main.
 * Spec: qapi/block-export.json block-export-add, block-export-del, query-block-exports,
 * BLOCK_EXPORT_DELETED
 */

import { isWellformedId } from "../block/catalogue.ts";
import type { BlockGraph, RootUse } from "../block/graph.ts";
import type { GraphNode, RootUser } from "../block/graph-node.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../block/node.ts";
import { rollBack } from "../block/roll-back.ts";
import type { Iothread, Iothreads } from "../iothread/pool.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { trace } from "../util/trace.ts";
import type { BlockExport, ExportType } from "./export.ts";

/** Checked members of BlockExportOptions, wire names. */
interface BlockExportOptions {
  readonly type: string;
  readonly id: string;
  readonly "node-name": string;
  readonly iothread?: string | readonly string[];
  readonly "fixed-iothread"?: boolean;
  readonly writable?: boolean;
  readonly writethrough?: boolean;
  readonly "allow-inactive"?: boolean;
}

/** Checked arguments of nbd-server-add. */
export interface NbdServerAddOptions {
  readonly device: string;
  readonly name?: string | undefined;
  readonly description?: string | undefined;
  readonly writable?: boolean | undefined;
  readonly bitmap?: string | undefined;
}

export interface BlockExportInfo {
  readonly id: string;
  readonly type: string;
  readonly "node-name": string;
  readonly "shutting-down": boolean;
}

export interface ExportManagerParts {
  readonly graph: BlockGraph;
  readonly iothreads: Iothreads;
  readonly types: readonly ExportType[];
  /** Emits a QAPI event. */
  readonly emit: (event: "BLOCK_EXPORT_DELETED", data: { readonly id: string }) => void;
  readonly log?: Log;
}

interface Member {
  readonly exp: BlockExport;
  readonly type: ExportType;
  readonly use: RootUse;
  shuttingDown: boolean;
  /** Ends when its type has said whether it shuts down. */
  asked: Promise<unknown>;
  /** From its final deletion on. */
  gone: Promise<void> | null;
}

export class ExportManager {
  #graph: BlockGraph;
  #iothreads: Iothreads;
  #types: ReadonlyMap<string, ExportType>;
  #emit: ExportManagerParts["emit"];
  #log: Log;
  /** Oldest first. */
  #members = new Map<string, Member>();
  #adding = new Set<string>();

  constructor({ graph, iothreads, types, emit, log }: ExportManagerParts) {
    this.#log = log ?? (() => {});
    this.#graph = graph;
    this.#iothreads = iothreads;
    this.#types = new Map(types.map((type) => [type.name, type]));
    this.#emit = emit;
  }

  /**
   * block-export-add. `options`: BlockExportOptions, wire names, checked against its schema.
   * `fdNumbers`: see BlockExport.
   */
  async add(options: Readonly<Record<string, unknown>>, fdNumbers = false): Promise<void> {
    const checked = options as unknown as BlockExportOptions;
    const { id, iothread, "fixed-iothread": fixed } = checked;
    if (Array.isArray(iothread) && fixed === true) {
      const text = "Cannot use fixed-iothread for a multi-threaded export";
      throw new OutportError("invalid", text);
    }
    if (!isWellformedId(id)) throw new OutportError("invalid", "Invalid block export id");
    if (this.#members.has(id) || this.#adding.has(id)) {
      throw new OutportError("in-use", `Block export id '${id}' is already in use`);
    }
    const type = this.#types.get(checked.type);
    if (type === undefined) {
      throw new OutportError("unsupported", "No driver found for the requested export type");
    }
    this.#adding.add(id);
    try {
      this.#members.set(
        id,
        await this.#graph.exclusive(() => this.#create(type, checked, fdNumbers)),
      );
      const facts = { export: id, type: type.name, node: checked["node-name"] };
      if (trace.blk_exp_add.enabled) {
        trace.blk_exp_add.write(`id ${id} type ${facts.type} node ${facts.node}`);
      }
      this.#log("info", "export added", facts);
    } finally {
      this.#adding.delete(id);
    }
  }

  /** block-export-del. Without clients it is gone on return; with clients, the event tells. */
  async delete(id: string, mode: "safe" | "hard" = "safe"): Promise<void> {
    const member = this.#members.get(id);
    if (member === undefined) throw new OutportError("not-found", `Export '${id}' is not found`);
    if (member.shuttingDown) {
      throw new OutportError("in-use", `Export '${id}' is already shutting down`);
    }
    if (trace.blk_exp_request_shutdown.enabled) {
      trace.blk_exp_request_shutdown.write(`id ${id} mode ${mode}`);
    }
    const clientCount = await this.#requestShutdown(member, mode === "safe").catch((error) => {
      if (!(error instanceof OutportError) || error.kind !== "in-use") throw error;
      throw new OutportError("in-use", `export '${id}' still in use`, { cause: error });
    });
    const gone = this.#finish(member);
    if (clientCount === 0) await gone;
  }

  /**
   * The legacy way of nbd-server-add: id and name are one, and a node that can't be written is
   * exported for reading.
   */
  async addLegacyNbd(options: NbdServerAddOptions): Promise<void> {
    const { device, name = device, description, writable = false, bitmap } = options;
    const node = this.#graph.find(device);
    if (node === undefined) throw noSuchNode(device, device);
    await this.add({
      type: "nbd",
      id: name,
      "node-name": device,
      name,
      writable: writable && node.info.writable,
      ...(description === undefined ? {} : { description }),
      ...(bitmap === undefined ? {} : { bitmaps: [bitmap] }),
    });
  }

  /** nbd-server-remove. */
  async deleteLegacyNbd(id: string, mode?: "safe" | "hard"): Promise<void> {
    const member = this.#members.get(id);
    if (member !== undefined && member.type.name !== "nbd") {
      throw new OutportError("invalid", `Block export '${id}' is not an NBD export`);
    }
    await this.delete(id, mode);
  }

  /** query-block-exports: newest first. */
  query(): BlockExportInfo[] {
    return [...this.#members.values()].reverse().map(({ exp, type, shuttingDown }) => ({
      id: exp.id,
      type: type.name,
      "node-name": exp.node.nodeName,
      "shutting-down": shuttingDown,
    }));
  }

  /** Deletes all (of one type), newest first, whatever clients they have; resolves when gone. */
  async closeAll(type?: string): Promise<void> {
    // Those that are being made: the types refuse them or have them by then.
    while (this.#adding.size > 0) await this.#graph.exclusive(async () => {});
    const closing = [...this.#members.values()]
      .reverse()
      .filter((member) => type === undefined || member.type.name === type);
    for (const member of closing) {
      // Somebody's safe deletion may still be refused.
      await member.asked;
      if (!member.shuttingDown) await this.#requestShutdown(member, false);
    }
    // At once, so that a slow one holds up nobody's drain; their events keep their order.
    let before: Promise<void> = Promise.resolve();
    for (const member of closing) before = this.#finish(member, before);
    await Promise.all(closing.map((member) => member.gone));
  }

  async #create(
    type: ExportType,
    options: BlockExportOptions,
    fdNumbers: boolean,
  ): Promise<Member> {
    const node = this.#findNode(options);
    const iothread = this.#placeFor(options);
    const home = node.iothread;
    const isMoved = iothread !== null && (await this.#move(node, iothread, options));
    try {
      return await this.#activate(type, node, options, fdNumbers);
    } catch (error) {
      // QSD differs: it leaves the node where it has moved. Here another export may keep it there,
      // by a client in the middle of a request.
      if (isMoved) await rollBack([() => this.#graph.move(node, home)]);
      throw error;
    }
  }

  async #activate(
    type: ExportType,
    node: GraphNode,
    options: BlockExportOptions,
    fdNumbers: boolean,
  ): Promise<Member> {
    if (options["allow-inactive"] === true) {
      if (type.allowsInactive) return await this.#attach(type, node, options, fdNumbers);
      throw new OutportError("invalid", "Export type does not support inactive exports");
    }
    const inactivate = await this.#graph.activate(node);
    try {
      return await this.#attach(type, node, options, fdNumbers);
    } catch (error) {
      // QSD differs: it leaves the node active.
      await rollBack([inactivate]);
      throw error;
    }
  }

  #findNode(options: BlockExportOptions): GraphNode {
    const name = options["node-name"];
    const node = this.#graph.find(name);
    if (node === undefined) throw noSuchNode("", name);
    if (options.writable === true && !node.info.writable) {
      throw new OutportError("permission", "Cannot export read-only node as writable");
    }
    return node;
  }

  /** Where the user wants the node; null: where it is. */
  #placeFor({ iothread }: BlockExportOptions): Iothread | null {
    if (iothread === undefined) return null;
    if (typeof iothread === "string") return this.#iothreads.get(iothread);
    const [first] = iothread.map((id) => this.#iothreads.get(id));
    if (first === undefined) {
      throw new OutportError("invalid", "The set of I/O threads must not be empty");
    }
    return first;
  }

  async #move(node: GraphNode, iothread: Iothread, options: BlockExportOptions): Promise<boolean> {
    if (node.iothread === iothread) return false;
    try {
      await this.#graph.move(node, iothread);
      return true;
    } catch (error) {
      if (options["fixed-iothread"] === true) throw error;
      return false;
    }
  }

  async #attach(
    type: ExportType,
    node: GraphNode,
    options: BlockExportOptions,
    fdNumbers: boolean,
  ): Promise<Member> {
    const writable = options.writable ?? false;
    const used = PERM_CONSISTENT_READ | (writable ? PERM_WRITE : 0);
    const permissions = { used, shared: PERM_ALL };
    const user: RootUser = {
      allowInactive: options["allow-inactive"] === true,
      onReplaced: async (from) => type.onReplaced?.(exp, from),
      ...(options["fixed-iothread"] === true
        ? {}
        : { beforeMove: () => type.suspend(exp), afterMove: () => type.resume(exp) }),
    };
    const use = await this.#graph.attachRoot(node, permissions, user);
    const exp: BlockExport = {
      id: options.id,
      get node() {
        return use.child;
      },
      writable,
      writethrough: options.writethrough ?? false,
      multiThreaded: Array.isArray(options.iothread),
      fdNumbers,
      options: ownMembers(type, options),
      permissions,
      setPermissions: (wanted) => this.#graph.changeRoot(use, wanted),
    };
    try {
      await type.create(exp);
    } catch (error) {
      await this.#graph.detachRoot(use);
      throw error;
    }
    return { exp, type, use, shuttingDown: false, asked: Promise.resolve(), gone: null };
  }

  /** Returns how many clients it has. Throws what its type refuses with, and it serves on then. */
  #requestShutdown(member: Member, safe: boolean): Promise<number> {
    member.shuttingDown = true;
    const asked = member.type.requestShutdown(member.exp, safe).catch((error) => {
      member.shuttingDown = false;
      throw error;
    });
    member.asked = asked.catch(() => {});
    return asked;
  }

  /** The final deletion, once; its event comes after `before`. */
  #finish(member: Member, before: Promise<void> = Promise.resolve()): Promise<void> {
    const finish = async (): Promise<void> => {
      await member.type.delete(member.exp);
      await this.#graph.exclusive(() => this.#graph.detachRoot(member.use));
      await before;
      this.#members.delete(member.exp.id);
      if (trace.blk_exp_delete.enabled) trace.blk_exp_delete.write(`id ${member.exp.id}`);
      this.#log("info", "export gone", { export: member.exp.id });
      this.#emit("BLOCK_EXPORT_DELETED", { id: member.exp.id });
    };
    member.gone ??= finish();
    return member.gone;
  }
}

function noSuchNode(device: string, nodeName: string): OutportError {
  const message = `Cannot find device='${device}' nor node-name='${nodeName}'`;
  return new OutportError("not-found", message);
}

function ownMembers(type: ExportType, options: BlockExportOptions): Record<string, unknown> {
  const all = Object.entries(options);
  return Object.fromEntries(all.filter(([name]) => Object.hasOwn(type.members, name)));
}
