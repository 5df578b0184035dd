/**
 * The images of overlays that blockdev-snapshot-sync makes or finds, opened as nodes beside what
 * they are to stand on. Thread: main.
 * Spec: QEMU blockdev.c external_snapshot_action(), block.c bdrv_img_create()
 */
import { OutportError } from "../util/error.ts";
import type { BlockDriver, Permissions } from "./driver.ts";
import type { BlockGraph } from "./graph.ts";
import type { GraphNode } from "./graph-node.ts";
import { imageFilename } from "./image-names.ts";
import { impliedOptions, impliedPath } from "./implied-names.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from "./node.ts";
import { truncate } from "./resize.ts";

type Wire = Readonly<Record<string, unknown>>;

/** What is made is nobody else's until it is done. */
const ALONE: Permissions = {
  used: PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
  shared: PERM_ALL & ~(PERM_WRITE | PERM_RESIZE),
};

export interface OverlayImagesParts {
  readonly graph: BlockGraph;
  /** Of BlockdevOptions. Throws OutportError. */
  readonly checkOptions: (options: Wire) => Wire;
  readonly isBlockDevice: (path: string) => boolean;
  /** See CreateContext. */
  readonly servedDevices: () => readonly number[];
}

export interface OverlayImage {
  readonly filename: string;
  readonly format: string;
  /** Undefined: a generated one. */
  readonly nodeName: string | undefined;
}

export class OverlayImages {
  #parts: OverlayImagesParts;
  #count = 0;

  constructor(parts: OverlayImagesParts) {
    this.#parts = parts;
  }

  /** Makes an image that shows what `base` does. Throws OutportError. */
  async create(base: GraphNode, { filename, format }: OverlayImage): Promise<void> {
    const { graph, isBlockDevice } = this.#parts;
    const driver = graph.driver(format);
    if (driver === undefined) {
      throw new OutportError("invalid", `Unknown file format '${format}'`);
    }
    if (filename.startsWith("json:")) {
      throw new OutportError("unsupported", "Unknown protocol 'json'");
    }
    const path = impliedPath({ filename, imageFilename: undefined });
    checkFormat(driver);
    const backing = imageFilename(base);
    if (backing === filename) {
      const what = "Trying to create an image with the same filename as the backing file";
      throw new OutportError("invalid", `Error: ${what}`);
    }
    if (!isBlockDevice(path)) await this.#make(base, "file", { filename: path, size: 0 }, {});
    await this.#format(base, driver, path, {
      size: base.info.bytes,
      "backing-file": backing,
      "backing-fmt": base.driver.name,
    });
  }

  async #format(base: GraphNode, driver: BlockDriver, path: string, options: Wire): Promise<void> {
    const { graph } = this.#parts;
    const plan = driver.creation!.plan!(options, ["file"]);
    const node = await graph.open(this.#fileOptions(path), base);
    const use = await graph.attachRoot(node, ALONE).catch(async (error) => {
      await graph.closeUnused(node);
      throw error;
    });
    try {
      const { bytes } = plan.file!;
      if (node.info.bytes < bytes) await truncate(node, bytes);
      const target = { nodeName: node.nodeName, filename: imageFilename(node) };
      await this.#make(base, driver.name, options, { file: target });
    } finally {
      await graph.detachRoot(use);
    }
  }

  #fileOptions(path: string): Wire {
    const driver = this.#parts.isBlockDevice(path) ? "host_device" : "file";
    return this.#parts.checkOptions({ driver, filename: path });
  }

  async #make(
    base: GraphNode,
    driver: string,
    options: Wire,
    targets: Record<string, { nodeName: string; filename: string }>,
  ): Promise<void> {
    const servedDevices = this.#parts.servedDevices();
    // No user's job has such an id.
    const jobId = `#overlay${this.#count++}`;
    const params = { jobId, driver, options, targets, servedDevices };
    await base.iothread.call("image-create", params);
  }

  /** Opens it without what it may name as its backing file itself. Throws OutportError. */
  async open(base: GraphNode, { filename, format, nodeName }: OverlayImage): Promise<GraphNode> {
    const { graph, checkOptions, isBlockDevice } = this.#parts;
    const driver = graph.driver(format);
    if (driver === undefined) throw new OutportError("invalid", `Unknown driver '${format}'`);
    const { readOnly, autoReadOnly, cacheDirect, cacheNoFlush, discardUnmap } = base.definition;
    const named = impliedOptions({ filename, format, imageFilename: undefined, isBlockDevice });
    const hasBacking = driver.children.some(({ role }) => role === "backing");
    const options = checkOptions({
      ...named,
      ...(nodeName === undefined ? {} : { "node-name": nodeName }),
      ...(hasBacking ? { backing: null } : {}),
      "read-only": readOnly,
      "auto-read-only": autoReadOnly,
      cache: { direct: cacheDirect, "no-flush": cacheNoFlush },
      discard: discardUnmap ? "unmap" : "ignore",
    });
    return graph.open(options, base);
  }
}

/** Throws OutportError. */
function checkFormat({ name, creation, isProtocol, filtered, children }: BlockDriver): void {
  const isFormat = isProtocol !== true && filtered === undefined;
  if (creation === undefined && !isFormat) {
    const message = `Format driver '${name}' does not support image creation`;
    throw new OutportError("unsupported", message);
  }
  if (creation !== undefined && children.some(({ role }) => role === "backing")) return;
  throw new OutportError("unsupported", `Backing file not supported for file format '${name}'`);
}
