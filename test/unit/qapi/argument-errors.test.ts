/** check() says of wrong arguments to every command what the reference release says. */
import { expect, test } from "bun:test";
import { check } from "../../../src/qapi/check.ts";
import { parseJson } from "../../../src/qmp/json-stream.ts";
import { readArgumentErrors } from "../../support/argument-errors.ts";
import { catalogue } from "../../support/catalogue.ts";

test("check() has the reference's words for wrong arguments, and lets the right ones pass", () => {
  const commands = new Map(catalogue().commands.map((command) => [command.name, command]));
  const recorded = readArgumentErrors();
  const ours = recorded.map(([name, args]) => {
    try {
      const schema = commands.get(name)?.arguments;
      if (schema === undefined) return [name, args, "no such command"];
      check(schema, parseJson(args));
      return [name, args, ""];
    } catch (error) {
      return [name, args, (error as Error).message];
    }
  });
  expect(recorded.length).toBeGreaterThan(1000);
  expect(ours).toEqual(recorded.map((entry) => [...entry]));
});
