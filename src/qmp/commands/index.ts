/** Every command and event. Thread: main. */
import type { QomTree } from "../../objects/qom.ts";
import type { ObjectRegistry } from "../../objects/registry.ts";
import type { AnyCommand, EventMap } from "../../qapi/types.ts";
import { type BitmapParts, bitmapCommands } from "./bitmaps.ts";
import { type BlockParts, blockCommands } from "./block.ts";
import { type BlockNodeParts, blockNodeCommands, blockNodeEvents } from "./block-nodes.ts";
import { type ChardevCommands, chardevCommands } from "./chardev.ts";
import { type ExportParts, exportCommands, exportEvents } from "./export.ts";
import { type GraphParts, graphCommands } from "./graph.ts";
import { introspectCommands } from "./introspect.ts";
import { type JobParts, jobCommands, jobEvents } from "./jobs.ts";
import { miscCommands } from "./misc.ts";
import { objectCommands } from "./object.ts";
import { qomCommands } from "./qom.ts";
import { type SnapshotParts, snapshotCommands } from "./snapshots.ts";
import { type TransactionParts, transactionCommands } from "./transaction.ts";

export interface CommandParts
  extends BlockParts,
    BlockNodeParts,
    ExportParts,
    GraphParts,
    BitmapParts,
    JobParts,
    SnapshotParts,
    TransactionParts {
  readonly graph: BlockParts["graph"] & GraphParts["graph"];
  readonly objects: ObjectRegistry;
  readonly qom: QomTree;
  readonly chardevs: ChardevCommands;
  /** Closes exports; the process ends after the reply. */
  readonly quit: () => Promise<void>;
}

export const allEvents = [...exportEvents, ...blockNodeEvents, ...jobEvents] as const;
/** What EventHub.emit() takes: data by name of the event. */
export type Events = EventMap<typeof allEvents>;

export function allCommands(parts: CommandParts): readonly AnyCommand[] {
  const commands: readonly AnyCommand[] = [
    ...miscCommands({ commands: () => commands, quit: parts.quit }),
    ...blockCommands(parts),
    ...blockNodeCommands(parts),
    ...graphCommands(parts),
    ...bitmapCommands(parts),
    ...snapshotCommands(parts),
    ...transactionCommands(parts),
    ...jobCommands(parts),
    ...exportCommands(parts),
    ...objectCommands(parts.objects),
    ...introspectCommands({ commands: () => commands, events: allEvents }),
    ...qomCommands(parts.qom),
    ...chardevCommands(parts.chardevs),
  ];
  return commands;
}
