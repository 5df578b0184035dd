/** Every command. Thread: main. */
import type { ObjectRegistry } from "../../objects/registry.ts";
import type { AnyCommand } from "../../qapi/types.ts";
import { type BlockParts, blockCommands } from "./block.ts";
import { type ExportParts, exportCommands } from "./export.ts";
import { miscCommands } from "./misc.ts";
import { objectCommands } from "./object.ts";

export interface CommandParts extends BlockParts, ExportParts {
  readonly objects: ObjectRegistry;
  /** Closes exports; the process ends after the reply. */
  readonly quit: () => Promise<void>;
}

export function allCommands(parts: CommandParts): readonly AnyCommand[] {
  const commands: readonly AnyCommand[] = [
    ...miscCommands({ commands: () => commands, quit: parts.quit }),
    ...blockCommands(parts),
    ...exportCommands(parts),
    ...objectCommands(parts.objects),
  ];
  return commands;
}
