/** Every export type. Thread: main. */
import type { ExportType } from "./export.ts";
import type { NbdServer } from "./nbd/index.ts";
import { vhostUserBlkExportType } from "./vhost-user-blk/index.ts";

/** What the types need of the process. */
export interface ExportTypesParts {
  readonly nbdServer: NbdServer;
}

export function exportTypes({ nbdServer }: ExportTypesParts): readonly ExportType[] {
  return [nbdServer.exportType, vhostUserBlkExportType()];
}
