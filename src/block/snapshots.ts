/**
 * The commands on snapshots and on the names of backing files, each as it runs inside exclusive()
 * and a drained section. Thread: main.
 * Spec: qapi/block-core.json blockdev-snapshot, blockdev-snapshot-sync,
 * blockdev-snapshot-internal-sync, blockdev-snapshot-delete-internal-sync, change-backing-file
 */
import type { SnapshotInfo } from "../qapi/block.ts";
import type {
  BlockdevSnapshot,
  BlockdevSnapshotInternal,
  BlockdevSnapshotSync,
} from "../qapi/snapshots.ts";
import { EPERM, strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import type { BlockGraph } from "./graph.ts";
import type { GraphNode } from "./graph-node.ts";
import {
  deleteInternalSnapshot,
  type InternalSnapshotDeletion,
  rootNode,
  takeInternalSnapshot,
} from "./internal-snapshots.ts";
import { OverlayImages, type OverlayImagesParts } from "./overlay-images.ts";
import { appendOverlay, prepareBase } from "./overlays.ts";
import { setReadOnly } from "./read-only-switch.ts";
import { rollBack } from "./roll-back.ts";
import { runSteps, type Step, type Undo } from "./transactions.ts";

/** An action of a transaction, wire names; checked against its schema. */
export type SnapshotAction =
  | { readonly type: "blockdev-snapshot"; readonly data: BlockdevSnapshot }
  | { readonly type: "blockdev-snapshot-sync"; readonly data: BlockdevSnapshotSync }
  | { readonly type: "blockdev-snapshot-internal-sync"; readonly data: BlockdevSnapshotInternal };

export interface BackingFileChange {
  readonly device: string;
  readonly "image-node-name": string;
  readonly "backing-file": string;
}

export interface SnapshotsParts extends OverlayImagesParts {
  readonly realTimeUs: () => number;
}

export class Snapshots {
  #graph: BlockGraph;
  #images: OverlayImages;
  #realTimeUs: () => number;

  constructor(parts: SnapshotsParts) {
    this.#graph = parts.graph;
    this.#images = new OverlayImages(parts);
    this.#realTimeUs = parts.realTimeUs;
  }

  /** Alone, with nothing in flight where it is about. Throws OutportError. */
  run(action: SnapshotAction): Promise<void> {
    return runSteps(this.#graph, () => this.#nodesOf(action), [this.step(action)]);
  }

  step(action: SnapshotAction): Step {
    switch (action.type) {
      case "blockdev-snapshot":
        return () => this.#append(action.data);
      case "blockdev-snapshot-sync":
        return () => this.#appendImage(action.data);
      case "blockdev-snapshot-internal-sync":
        return () => takeInternalSnapshot(this.#graph, action.data, this.#realTimeUs());
    }
  }

  /** blockdev-snapshot-delete-internal-sync */
  deleteInternal(deletion: InternalSnapshotDeletion): Promise<SnapshotInfo> {
    const graph = this.#graph;
    return graph.exclusive(() =>
      graph.drained(this.#known([deletion.device]), () => deleteInternalSnapshot(graph, deletion)),
    );
  }

  /** change-backing-file */
  changeBackingFile(change: BackingFileChange): Promise<void> {
    const graph = this.#graph;
    const names = [change.device, change["image-node-name"]];
    return graph.exclusive(() =>
      graph.drained(this.#known(names), () => this.#changeBackingFile(change)),
    );
  }

  #nodesOf(action: SnapshotAction): GraphNode[] {
    switch (action.type) {
      case "blockdev-snapshot":
        return this.#known([action.data.node, action.data.overlay]);
      case "blockdev-snapshot-sync":
        return this.#known([action.data["node-name"] ?? ""]);
      case "blockdev-snapshot-internal-sync":
        return this.#known([action.data.device]);
    }
  }

  #known(names: readonly string[]): GraphNode[] {
    return names.flatMap((name) => this.#graph.find(name) ?? []);
  }

  /** Throws OutportError. */
  #named(nodeName: string, device = ""): GraphNode {
    const node = this.#graph.find(nodeName);
    if (node !== undefined) return node;
    const message = `Cannot find device='${device}' nor node-name='${nodeName}'`;
    throw new OutportError("not-found", message);
  }

  async #append({ node, overlay }: BlockdevSnapshot): Promise<Undo> {
    const base = this.#named(node, node);
    await prepareBase(base);
    return appendOverlay(this.#graph, base, this.#named(overlay, overlay));
  }

  async #appendImage(data: BlockdevSnapshotSync): Promise<Undo> {
    const { "node-name": name = "", "snapshot-node-name": nodeName } = data;
    const base = this.#named(name, data.device);
    await prepareBase(base);
    if (nodeName === undefined) {
      throw new OutportError("invalid", "New overlay node-name missing");
    }
    if (this.#graph.find(nodeName) !== undefined) {
      throw new OutportError("in-use", "New overlay node-name already in use");
    }
    const { "snapshot-file": filename, format = "qcow2", mode = "absolute-paths" } = data;
    const image = { filename, format, nodeName };
    if (mode !== "existing") await this.#images.create(base, image);
    const overlay = await this.#images.open(base, image);
    const close = (): Promise<void> => this.#graph.closeUnused(overlay);
    try {
      const appended = await appendOverlay(this.#graph, base, overlay);
      return {
        keep: async () => {
          await appended.keep();
          // As QSD does: only who uses the base keeps it.
          await rollBack([close]);
        },
        undo: () => rollBack([() => appended.undo(), close]),
      };
    } catch (error) {
      await rollBack([close]);
      throw error;
    }
  }

  async #changeBackingFile(change: BackingFileChange): Promise<void> {
    const { device, "image-node-name": imageName, "backing-file": backingFile } = change;
    const root = rootNode(this.#graph, device);
    const image = this.#named(imageName);
    const backing = imageBehind(image);
    if (backing === undefined) {
      const what = "not allowing backing file change on an image without a backing file";
      throw new OutportError("invalid", what);
    }
    let node: GraphNode | undefined = root;
    while (node !== undefined && node !== image) node = imageBehind(node);
    if (node === undefined) {
      throw new OutportError("invalid", `'${device}' and image file are not in the same chain`);
    }
    const { readOnly } = image.definition;
    if (readOnly) await setReadOnly(image, false);
    try {
      await this.#nameBacking(image, backing, backingFile);
    } finally {
      if (readOnly) await setReadOnly(image, true);
    }
  }

  async #nameBacking(image: GraphNode, backing: GraphNode, backingFile: string): Promise<void> {
    const { nodeName, iothread } = image;
    // QSD differs: it names the image's own format, also where the backing file has another one.
    const params = { nodeName, backingFile, format: formatOf(backing) };
    // QSD differs: it ends when the node is inactive.
    const result = image.active ? await iothread.call("node-backing-file", params) : -EPERM;
    if (result === 0) return;
    const what = `Could not change backing file to '${backingFile}'`;
    throw new OutportError("io", `${what}: ${strerror(-result)}`);
  }
}

function imageBehind({ driver, children }: GraphNode): GraphNode | undefined {
  return children.find(({ role }) => role === (driver.filtered ?? "backing"))?.child;
}

/** Of what shows through filters. */
function formatOf(node: GraphNode): string {
  let image = node;
  while (image.driver.filtered !== undefined) image = imageBehind(image)!;
  return image.driver.name;
}
