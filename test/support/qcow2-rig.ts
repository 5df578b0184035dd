/** qcow2 images in this process: opened over their files as a daemon would, for tests. */
import { BlockBackend } from "../../src/block/backend.ts";
import type { OpenContext } from "../../src/block/driver.ts";
import { file } from "../../src/block/drivers/file/index.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import { raw } from "../../src/block/drivers/raw.ts";
import { type BlockNode, PERM_ALL } from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import type { IothreadEvent } from "../../src/iothread/messages.ts";
import { openContext } from "./block.ts";
import { runOn } from "./reactor.ts";

export interface ImageFiles {
  readonly path: string;
  /** Path and format of the next one down. */
  readonly backing?: ImageFiles & { readonly format: "raw" | "qcow2" };
  readonly dataFile?: string;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly readOnly?: boolean;
  readonly discardUnmap?: boolean;
  /** Of an encrypted image. */
  readonly key?: Uint8Array;
}

export interface OpenedImage {
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  readonly events: readonly IothreadEvent[];
  /** All of it, the topmost first. */
  close(): Promise<void>;
}

export async function openQcow2(reactor: Reactor, files: ImageFiles): Promise<OpenedImage> {
  const events: IothreadEvent[] = [];
  const report = (event: IothreadEvent): void => {
    events.push(event);
  };
  const opened: BlockNode[] = [];
  const readOnly = files.readOnly ?? false;
  const open = async (some: ImageFiles, format: "raw" | "qcow2", top: boolean) => {
    const common = { readOnly: !top || readOnly, report, discardUnmap: true };
    const fileAt = async (filename: string): Promise<BlockNode> => {
      const context = openContext(reactor, { ...common, options: { filename } });
      const node = await file.open(context);
      await node.setPermissions(0, PERM_ALL);
      opened.unshift(node);
      return node;
    };
    const children: Record<string, BlockNode> = { file: await fileAt(some.path) };
    if (some.dataFile !== undefined) children["data-file"] = await fileAt(some.dataFile);
    if (some.backing !== undefined) {
      children.backing = await open(some.backing, some.backing.format, false);
    }
    const context: OpenContext = openContext(reactor, {
      ...common,
      discardUnmap: some.discardUnmap ?? true,
      options: some.options ?? {},
      ...(some.key === undefined ? {} : { key: some.key }),
      children,
    });
    const node = await (format === "raw" ? raw : qcow2).open(context);
    opened.unshift(node);
    return node;
  };
  const closeAll = async (): Promise<void> => {
    for (const one of opened) await runOn(reactor, () => one.close());
  };
  const node = await runOn(reactor, () => open(files, "qcow2", true)).catch(async (error) => {
    await closeAll();
    throw error;
  });
  const backend = new BlockBackend(reactor, node, { writable: !readOnly, writethrough: false });
  return {
    node,
    backend,
    events,
    async close() {
      await runOn(reactor, () => backend.close());
      await closeAll();
    },
  };
}
