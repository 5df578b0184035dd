/**
 * Which exports of one type iothreads serve, and what that means while a node moves to another
 * iothread. Thread: main.
 *
 * An export type keeps one. Its create() ends with open(), its delete() is close(), its suspend()
 * and resume() are those here, and so is its requestShutdown(), if its ExportService knows its
 * clients; otherwise it calls setClosing(). All that goes to the iothread of an export by another
 * way waits for the end of `move`.
 */
import type { ExportOpen, ShutdownReply } from "../iothread/messages.ts";
import { assert, OutportError } from "../util/error.ts";
import type { BlockExport } from "./export.ts";

/** An export that an iothread has, or will have when it has moved. */
export interface HostedExport {
  readonly exp: BlockExport;
  /** Ends when it serves again; null while it serves. */
  readonly move: Promise<void> | null;
}

class Hosted implements HostedExport {
  readonly exp: BlockExport;
  readonly options: ExportOpen["options"];
  move: Promise<void> | null = null;
  endMove: () => void = () => {};
  /** What the old thread gave away for the new one. */
  handover: unknown = null;
  /** It is about to leave its node. */
  isClosing = false;

  constructor(exp: BlockExport, options: ExportOpen["options"]) {
    this.exp = exp;
    this.options = options;
  }
}

export class HostedExports {
  #type: string;
  /** By id. */
  #hosted = new Map<string, Hosted>();

  /** `type`: ExportType.name. */
  constructor(type: string) {
    this.#type = type;
  }

  /** Undefined: there is none, or none any more. */
  find(id: string): HostedExport | undefined {
    return this.#hosted.get(id);
  }

  /**
   * Opens it on the iothread of its node. `options`: ExportOpen.options, those that it moves with,
   * too. Returns what its ExportService says.
   */
  async open(exp: BlockExport, options: ExportOpen["options"]): Promise<unknown> {
    const hosted = new Hosted(exp, options);
    const reply = await exp.node.iothread.call("export-open", this.#openOf(hosted));
    this.#hosted.set(exp.id, hosted);
    return reply;
  }

  /** For ExportType.requestShutdown(): asks its ExportService. */
  async requestShutdown(exp: BlockExport, safe: boolean): Promise<ShutdownReply> {
    const hosted = this.#get(exp);
    hosted.isClosing = true;
    try {
      await hosted.move;
      const { id } = exp;
      return await exp.node.iothread.call("export-shutdown", { id, safe });
    } catch (error) {
      hosted.isClosing = false;
      throw error;
    }
  }

  /** It stays where it is from now on. */
  setClosing(exp: BlockExport): void {
    this.#get(exp).isClosing = true;
  }

  /** See ExportType.delete(). */
  async close(exp: BlockExport): Promise<void> {
    await this.#get(exp).move;
    await exp.node.iothread.call("export-close", { id: exp.id });
    this.#hosted.delete(exp.id);
  }

  /** See ExportType.suspend(). */
  async suspend(exp: BlockExport): Promise<void> {
    const hosted = this.#hosted.get(exp.id);
    const refusal = "Cannot change iothread of active block backend";
    if (hosted === undefined || hosted.isClosing) throw new OutportError("in-use", refusal);
    assert(hosted.move === null, "an export is suspended once");
    hosted.move = new Promise((resolve) => {
      hosted.endMove = resolve;
    });
    try {
      const { handover } = await exp.node.iothread.call("export-suspend", { id: exp.id });
      hosted.handover = handover;
    } catch (cause) {
      endMove(hosted);
      throw new OutportError("in-use", refusal, { cause });
    }
  }

  /** See ExportType.resume(). */
  async resume(exp: BlockExport): Promise<void> {
    const hosted = this.#get(exp);
    assert(hosted.move !== null, "a suspended export is resumed");
    const { handover } = hosted;
    await exp.node.iothread.call("export-resume", { open: this.#openOf(hosted), handover });
    endMove(hosted);
  }

  #openOf({ exp, options }: Hosted): ExportOpen {
    const { id, node, writable, writethrough } = exp;
    return { id, type: this.#type, nodeName: node.nodeName, writable, writethrough, options };
  }

  #get({ id }: BlockExport): Hosted {
    const hosted = this.#hosted.get(id);
    assert(hosted !== undefined, `export '${id}' has been made`);
    return hosted;
  }
}

function endMove(hosted: Hosted): void {
  const end = hosted.endMove;
  hosted.move = null;
  hosted.handover = null;
  end();
}
