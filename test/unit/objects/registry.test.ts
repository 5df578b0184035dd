/** ObjectRegistry by way of object-add and object-del. Words are those of QSD 11.1. */
import { beforeEach, describe, expect, test } from "bun:test";
import { ObjectRegistry } from "../../../src/objects/registry.ts";
import { OutportError } from "../../../src/util/error.ts";
import { ObjectRig } from "../../support/objects.ts";

let rig: ObjectRig;
beforeEach(() => {
  rig = new ObjectRig();
});

const ids = () => [...rig.registry.list()].map(([id]) => id);
const taken = (id: string) =>
  `attempt to add duplicate property '${id}' to object (type 'container')`;

describe("object-add", () => {
  test("creates by id, in the order of their coming", async () => {
    await rig.add("iothread", "b");
    await rig.add("authz-list", "a");
    expect(ids()).toEqual(["b", "a"]);
    expect(rig.registry.find("a")?.type.name).toBe("authz-list");
    expect(rig.registry.find("zz")).toBe(undefined);
  });

  test("refuses ids that are malformed or taken", async () => {
    await rig.add("iothread", "a");
    const cases = [
      ["", "Parameter 'id' expects an identifier"],
      ["9", "Parameter 'id' expects an identifier"],
      ["a b", "Parameter 'id' expects an identifier"],
      ["/objects/a", "Parameter 'id' expects an identifier"],
      ["a", taken("a")],
      ["type", taken("type")],
    ] as const;
    for (const [id, message] of cases) {
      expect(await rig.messageOf(rig.add("iothread", id))).toBe(message);
    }
    expect(ids()).toEqual(["a"]);
  });

  test("checks schema, id, values, the id's owner and the whole, in this order", async () => {
    await rig.add("iothread", "a");
    const all = { "thread-pool-max": 0, "poll-max-ns": -1, nope: 1 };
    const { nope: _nope, ...values } = all;
    const cases = [
      ["a b", all, "Parameter 'nope' is unexpected"],
      ["a b", values, "Parameter 'id' expects an identifier"],
      ["a", values, "poll-max-ns value must be in range [0, 9223372036854775807]"],
      ["a", { "thread-pool-max": 0 }, taken("a")],
      ["b", { "thread-pool-max": 0 }, "bad thread-pool-min/thread-pool-max values"],
    ] as const;
    for (const [id, options, message] of cases) {
      expect(await rig.messageOf(rig.add("iothread", id, options))).toBe(message);
    }
    expect(ids()).toEqual(["a"]);
  });

  test("refuses kinds that are unknown, or not to be had", async () => {
    expect(await rig.messageOf(rig.add("nope", "a"))).toBe(
      "Parameter 'qom-type' does not accept value 'nope'",
    );
    expect(await rig.messageOf(rig.add("authz-pam", "a", { service: "x" }))).toBe(
      "invalid object type: authz-pam (PAM is not supported)",
    );
  });

  test("leaves nothing behind when it fails", async () => {
    rig.failure = new OutportError("io", "no thread");
    expect(await rig.messageOf(rig.add("iothread", "a"))).toBe("no thread");
    expect(ids()).toEqual([]);
    rig.failure = undefined;
    await rig.add("iothread", "a");
  });
});

describe("object-del", () => {
  test("deletes, and frees the id", async () => {
    await rig.add("iothread", "a");
    await rig.run("object-del", { id: "a" });
    await rig.add("secret", "a", { data: "x" });
    expect(rig.log.map((entry) => (entry as unknown[])[0])).toEqual(["start", "stop"]);
    expect(rig.registry.find("a")?.type.name).toBe("secret");
  });

  test("does not know ids that nobody has", async () => {
    for (const id of ["zz", "", "type", "/objects"]) {
      expect(await rig.messageOf(rig.run("object-del", { id }))).toBe(`object '${id}' not found`);
    }
  });

  test("keeps an object that is in use", async () => {
    await rig.add("iothread", "a");
    rig.inUse.add("a");
    expect(await rig.messageOf(rig.run("object-del", { id: "a" }))).toBe("object 'a' is in use");
    expect(ids()).toEqual(["a"]);
    rig.inUse.clear();
    await rig.run("object-del", { id: "a" });
    expect(ids()).toEqual([]);
  });

  test("tells the object who asks", async () => {
    const asked: unknown[] = [];
    const object = {
      type: { name: "x", properties: [] },
      get: () => undefined,
      delete: async (context: unknown) => void asked.push(context),
    };
    const kind = { name: "x", members: {}, type: object.type, create: async () => object };
    const registry = new ObjectRegistry([kind]);
    await registry.add({ "qom-type": "x", id: "a" });
    await registry.delete("a", { commandLine: true });
    expect(asked).toEqual([{ commandLine: true }]);
  });
});
