/** The dispatcher, with commands made up here. */
import { describe, expect, test } from "bun:test";
import { defineCommand } from "../../../src/qapi/define.ts";
import { int, nothing, object } from "../../../src/qapi/scalars.ts";
import { Dispatcher } from "../../../src/qmp/dispatcher.ts";
import { OutportError } from "../../../src/util/error.ts";

function makeDispatcher() {
  const log: string[] = [];
  const wait = defineCommand({
    name: "wait",
    documentation: "",
    errors: [],
    arguments: object("A", { n: int }),
    returns: nothing,
    async handler({ n }) {
      log.push(`begin ${n}`);
      await new Promise((resolve) => setTimeout(resolve, n));
      log.push(`end ${n}`);
      if (n === 0) throw new OutportError("io", "zero");
      return {};
    },
  });
  return { log, dispatcher: new Dispatcher([wait]) };
}

describe("Dispatcher", () => {
  test("runs one command at a time, in the order of arrival", async () => {
    const { log, dispatcher } = makeDispatcher();
    await Promise.all([3, 1, 2].map((n) => dispatcher.execute("wait", { n })));
    expect(log).toEqual(["begin 3", "end 3", "begin 1", "end 1", "begin 2", "end 2"]);
  });

  test("goes on after a failure", async () => {
    const { log, dispatcher } = makeDispatcher();
    const failing = dispatcher.execute("wait", { n: 0 });
    const next = dispatcher.execute("wait", { n: 1 });
    await expect(failing).rejects.toThrow("zero");
    expect(await next).toEqual({});
    expect(log).toEqual(["begin 0", "end 0", "begin 1", "end 1"]);
  });

  test("checks before it runs", async () => {
    const { log, dispatcher } = makeDispatcher();
    await expect(dispatcher.execute("wait", { n: "1" })).rejects.toThrow(
      "Invalid parameter type for 'n', expected: integer",
    );
    expect(await dispatcher.execute("wait", { n: "1" }, {}, "keyval")).toEqual({});
    expect(log).toEqual(["begin 1", "end 1"]);
  });

  test("has a class of its own for unknown commands", () => {
    const { dispatcher } = makeDispatcher();
    try {
      dispatcher.find("constructor");
      throw new Error("found");
    } catch (error) {
      expect((error as OutportError).qapiClass).toBe("CommandNotFound");
      expect((error as OutportError).message).toBe("The command constructor has not been found");
    }
  });
});
