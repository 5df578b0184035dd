/** Every export type. Thread: main. */
import type { ExportType } from "./export.ts";
import type { FuseExports } from "./fuse/index.ts";
import type { NbdServer } from "./nbd/index.ts";
import { vhostUserBlkExportType } from "./vhost-user-blk/index.ts";

/** What the types need of the process. */
export interface ExportTypesParts {
  readonly nbdServer: NbdServer;
  readonly fuse: FuseExports;
}

export function exportTypes({ nbdServer, fuse }: ExportTypesParts): readonly ExportType[] {
  return [nbdServer.exportType, vhostUserBlkExportType(), fuse.exportType];
}
