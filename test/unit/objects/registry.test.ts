/** ObjectRegistry and the kind iothread, with a fake pool. Words are those of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import { objectKinds } from "../../../src/objects/index.ts";
import { ObjectRegistry } from "../../../src/objects/registry.ts";
import { OutportError } from "../../../src/util/error.ts";

function setUp() {
  const log: unknown[] = [];
  const inUse = new Set<string>();
  const iothreads = {
    async start(id: string, options: object) {
      log.push(["start", id, options]);
    },
    async stop(id: string) {
      if (inUse.has(id)) throw new OutportError("in-use", `object '${id}' is in use`);
      log.push(["stop", id]);
    },
  };
  return { log, inUse, registry: new ObjectRegistry(objectKinds({ iothreads })) };
}

const iothread = { "qom-type": "iothread" };

describe("ObjectRegistry", () => {
  test("creates and deletes by id", async () => {
    const { log, registry } = setUp();
    await registry.add({ ...iothread, id: "a", "poll-max-ns": 0, "poll-grow": 3 });
    await registry.delete("a");
    await registry.add({ ...iothread, id: "a" });
    expect(log).toEqual([
      ["start", "a", { pollMaxNs: 0, pollGrow: 3 }],
      ["stop", "a"],
      ["start", "a", {}],
    ]);
  });

  test("refuses ids that are malformed, taken or unknown", async () => {
    const { registry } = setUp();
    const malformed = registry.add({ ...iothread, id: "9" });
    await expect(malformed).rejects.toThrow("Parameter 'id' expects an identifier");
    await registry.add({ ...iothread, id: "a" });
    const taken = registry.add({ ...iothread, id: "a" });
    await expect(taken).rejects.toThrow(
      "attempt to add duplicate property 'a' to object (type 'container')",
    );
    await expect(registry.delete("zz")).rejects.toThrow("object 'zz' not found");
  });

  test("keeps an object that is in use", async () => {
    const { inUse, registry } = setUp();
    await registry.add({ ...iothread, id: "a" });
    inUse.add("a");
    await expect(registry.delete("a")).rejects.toThrow("object 'a' is in use");
    inUse.clear();
    await registry.delete("a");
  });
});

describe("iothread", () => {
  test("refuses values out of range", async () => {
    const { log, registry } = setUp();
    const range = "value must be in range [0, 9223372036854775807]";
    for (const name of ["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"]) {
      const adding = registry.add({ ...iothread, id: "a", [name]: -1 });
      await expect(adding).rejects.toThrow(`${name} ${range}`);
    }
    for (const bad of [{ "thread-pool-max": 0 }, { "thread-pool-min": 5, "thread-pool-max": 2 }]) {
      const adding = registry.add({ ...iothread, id: "a", ...bad });
      await expect(adding).rejects.toThrow("bad thread-pool-min/thread-pool-max values");
    }
    expect(log).toEqual([]);
  });
});
