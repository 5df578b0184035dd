/** What most conformance tests begin with: one raw image, exported over NBD on a unix socket. */

import { MiB, patternImage, sparseImage, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import {
  PATIENCE_MS,
  type RunningDaemon,
  type SpawnDaemon,
  sleep,
  startDaemon,
} from "../support/process.ts";

export interface ServeOptions extends SpawnDaemon {
  readonly bytes?: number;
  /** The image has no allocated block, instead of a pattern. */
  readonly sparse?: boolean;
  /** An image that exists, instead of a new one. */
  readonly image?: string;
  /** More options of --blockdev driver=file. */
  readonly file?: string;
  /** More options of --blockdev driver=raw. */
  readonly raw?: string;
  /** More options of --nbd-server. */
  readonly server?: string;
  /** More options of --export; writable=on when absent. */
  readonly export?: string;
  /** Options that come first on the command line, such as an iothread. */
  readonly before?: readonly string[];
  /** Options that come after the export. */
  readonly after?: readonly string[];
}

export interface Scene extends RunningDaemon {
  /** The temporary directory. */
  readonly directory: string;
  readonly image: string;
  /** What the image held at the start; empty when it is sparse or was given. */
  readonly content: Buffer;
  readonly bytes: number;
  readonly socket: string;
  /** The export "disk". */
  readonly uri: string;
  uriOf(exportName: string): string;
  /** A connection in transmission, with simple replies. */
  open(exportName?: string): Promise<NbdClient>;
}

export function unixUri(socket: string, exportName: string): string {
  return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${socket}`;
}

function withMore(options: string, more: string | undefined): string {
  return more === undefined ? options : `${options},${more}`;
}

/** Exports a raw image as "disk" (export e0, node disk over node disk-file). */
export async function serve(options: ServeOptions = {}): Promise<Scene> {
  const bytes = options.bytes ?? 4 * MiB;
  await using made = new AsyncDisposableStack();
  const directory = made.use(await temporaryDirectory());
  const image = options.image ?? directory.file("disk.raw");
  const socket = directory.file("nbd.sock");
  let content: Buffer = Buffer.alloc(0);
  if (options.image === undefined) {
    if (options.sparse === true) await sparseImage(image, bytes);
    else content = await patternImage(image, bytes);
  }
  const args = [
    ...(options.before ?? []),
    "--blockdev",
    withMore(`driver=file,node-name=disk-file,filename=${image}`, options.file),
    "--blockdev",
    withMore("driver=raw,node-name=disk,file=disk-file", options.raw),
    "--nbd-server",
    withMore(`addr.type=unix,addr.path=${socket}`, options.server),
    "--export",
    withMore("type=nbd,id=e0,node-name=disk,name=disk", options.export ?? "writable=on"),
    ...(options.after ?? []),
  ];
  const running = made.use(await startDaemon(directory.path, args, options));
  const all = made.move();
  return {
    ...running,
    directory: directory.path,
    image,
    content,
    bytes,
    socket,
    uri: unixUri(socket, "disk"),
    uriOf: (exportName) => unixUri(socket, exportName),
    open: (exportName = "disk") => NbdClient.open({ path: socket }, { exportName, mode: "simple" }),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Waits until the server has closed this connection; throws when it does not. */
export async function ended(stream: { readonly ended: boolean }): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  while (!stream.ended) {
    if (Date.now() > deadline) throw new Error("still connected");
    await sleep(2);
  }
}
