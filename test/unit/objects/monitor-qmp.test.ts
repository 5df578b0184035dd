/** The object kind monitor-qmp, on fake devices. */
import { describe, expect, test } from "bun:test";
import type { Chardev, Frontend } from "../../../src/chardev/chardev.ts";
import { type MonitorSettings, monitorQmpKind } from "../../../src/objects/monitor-qmp.ts";
import { OutportError } from "../../../src/util/error.ts";

function setUp() {
  const log: unknown[] = [];
  let settings: Readonly<MonitorSettings> | undefined;
  const device = {
    attach: () => log.push("attached"),
    detach: () => log.push("detached"),
  } as unknown as Chardev;
  const kind = monitorQmpKind({
    chardevs: {
      get(id) {
        if (id === "c") return device;
        throw new OutportError("not-found", `chardev "${id}" not found`);
      },
    },
    makeMonitor: (_, given) => {
      settings = given;
      return {} as Frontend;
    },
  });
  const create = (options: object) =>
    kind.create("m", options as Record<string, unknown>, { find: () => undefined });
  return { create, log, settings: () => settings };
}

describe("monitor-qmp", () => {
  test("has settings that change while it runs", async () => {
    const { create, log, settings } = setUp();
    const object = await create({ chardev: "c", pretty: true });
    expect(log).toEqual(["attached"]);
    expect(settings()).toEqual({ chardev: "c", pretty: true, "close-action": "none" });
    await object.set?.("pretty", false);
    await object.set?.("close-action", "delete");
    expect(settings()).toEqual({ chardev: "c", pretty: false, "close-action": "delete" });
    expect(object.get("close-action")).toBe("delete");
  });

  test("cannot be deleted by its own client", async () => {
    const { create, log } = setUp();
    const object = await create({ chardev: "c" });
    const monitor = { id: "m", negotiate: () => {} };
    await expect(object.delete({ monitor })).rejects.toThrow(
      "Cannot delete the current QMP monitor",
    );
    await object.delete({ monitor: { ...monitor, id: "other" } });
    expect(log).toEqual(["attached", "detached"]);
  });

  test("needs a device", async () => {
    await expect(setUp().create({ chardev: "zz" })).rejects.toThrow('chardev "zz" not found');
  });
});
