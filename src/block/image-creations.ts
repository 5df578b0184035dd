/**
 * Makes images, for blockdev-create: gives the drivers what the images are made on. Thread:
 * iothread.
 */
import type { Reactor } from "../io/reactor.ts";
import type { ImageCreate, IothreadHandlersOf } from "../iothread/messages.ts";
import { ECANCELED, strerror } from "../runtime/errno.ts";
import { assert, OutportError } from "../util/error.ts";
import { BlockBackend } from "./backend.ts";
import type { BlockDriver, ImageTarget } from "./driver.ts";
import type { BlockNode } from "./node.ts";

export interface ImageCreationsParts {
  readonly reactor: Reactor;
  readonly drivers: readonly BlockDriver[];
  /** Of an open node. */
  readonly getNode: (nodeName: string) => BlockNode;
}

export class ImageCreations {
  #parts: ImageCreationsParts;
  /** By job; true: it is still wanted. */
  #wanted = new Map<string, boolean>();

  constructor(parts: ImageCreationsParts) {
    this.#parts = parts;
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<"image-create" | "image-create-cancel"> = {
    "image-create": async (params) => {
      await this.#create(params);
      return null;
    },
    "image-create-cancel": async ({ jobId }) => {
      if (this.#wanted.has(jobId)) this.#wanted.set(jobId, false);
      return null;
    },
  };

  async #create(params: ImageCreate): Promise<void> {
    const { jobId, driver: name, targets: places, ...given } = params;
    const { reactor, drivers, getNode } = this.#parts;
    const creation = drivers.find((driver) => driver.name === name)?.creation;
    assert(creation !== undefined, "main knows the same drivers");
    const targets: Record<string, ImageTarget> = {};
    for (const [role, { nodeName, filename }] of Object.entries(places)) {
      const mode = { writable: true, writethrough: false, stays: true };
      targets[role] = { backend: new BlockBackend(reactor, getNode(nodeName), mode), filename };
    }
    const checkWanted = (): void => {
      if (this.#wanted.get(jobId) === true) return;
      throw new OutportError("io", strerror(ECANCELED));
    };
    this.#wanted.set(jobId, true);
    try {
      await creation.create({ ...given, reactor, targets, checkWanted });
    } finally {
      this.#wanted.delete(jobId);
      // Who wants it flushed has done so.
      for (const { backend } of Object.values(targets)) await backend.close();
    }
  }
}
