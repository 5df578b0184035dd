/** All commands and events as the process has them, with nothing behind them: for their schemas. */
import { blockDrivers } from "../../src/block/drivers/index.ts";
import { FuseExports } from "../../src/exports/fuse/index.ts";
import { exportTypes } from "../../src/exports/index.ts";
import { NbdServer } from "../../src/exports/nbd/index.ts";
import { objectKinds } from "../../src/objects/index.ts";
import { allCommands, allEvents } from "../../src/qmp/commands/index.ts";

/** Has every member, can be called, and is empty. */
const nobody: unknown = new Proxy(() => {}, {
  get: (_target, key) => (key === Symbol.iterator ? [][Symbol.iterator] : nobody),
  apply: () => nobody,
});

/** `known` and whatever else is asked for. */
function partsWith(known: Readonly<Record<string, unknown>>): never {
  const get = (target: typeof known, key: string) => target[key] ?? nobody;
  return new Proxy(known, { get } as ProxyHandler<typeof known>) as never;
}

export function catalogue() {
  const commands = allCommands(
    partsWith({
      drivers: blockDrivers,
      types: exportTypes(
        partsWith({
          nbdServer: new NbdServer(nobody as never),
          fuse: new FuseExports(nobody as never),
        }),
      ),
      objects: { kinds: objectKinds(nobody as never) },
    }),
  );
  return { commands, events: allEvents };
}
