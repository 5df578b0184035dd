/** A QMP session fed with damaged requests: it never throws, answers in JSON, and recovers. */
import { expect, test } from "bun:test";
import { defineCommand } from "../../src/qapi/define.ts";
import { any, int, nothing, object, optional } from "../../src/qapi/scalars.ts";
import { miscCommands } from "../../src/qmp/commands/misc.ts";
import { Dispatcher } from "../../src/qmp/dispatcher.ts";
import { Session } from "../../src/qmp/session.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { FakeStream } from "../support/stream.ts";

const ROUNDS = 1500;

const KEYS = ["execute", "exec-oob", "arguments", "id", "foo", "__proto__", "constructor"];
const VALUES = [
  ...["slow", "query-version", "qmp_capabilities", "nope", "toString", ""],
  ...[{ n: 1 }, { n: "x" }, { enable: ["oob"] }, [], null, 1e300, -0, true, { x: { y: [] } }],
];

function randomRequest(random: Random): string {
  const members: string[] = [];
  for (let count = 1 + random.below(4); count > 0; count -= 1) {
    const key = random.chance(0.7) ? "execute" : random.pick(KEYS);
    members.push(`${JSON.stringify(key)}:${JSON.stringify(random.pick(VALUES))}`);
  }
  return `{${members.join(",")}}`;
}

function setUp(random: Random) {
  const slow = defineCommand({
    name: "slow",
    documentation: "",
    errors: [],
    arguments: object("A", { n: optional(int), x: optional(any) }),
    returns: nothing,
    handler: async () => {
      await null;
      if (random.chance(0.2)) throw new TypeError("a bug");
      return {};
    },
  });
  const commands = [slow, ...miscCommands({ commands: () => [], quit: async () => {} })];
  const stream = new FakeStream();
  const session = new Session({
    id: "m",
    settings: { pretty: false },
    stream,
    dispatcher: new Dispatcher(commands),
    events: { subscribe: () => () => {} },
    log: () => {},
  });
  return { session, stream };
}

test("Session answers whatever comes, and the next request", async () => {
  const random = new Random(randomSeed());
  for (let round = 0; round < fuzzCases(ROUNDS); round += 1) {
    const { session, stream } = setUp(random);
    const texts = Array.from({ length: 1 + random.below(12) }, () => randomRequest(random));
    const bytes = new TextEncoder().encode(texts.join(random.chance(0.5) ? "\n" : ""));
    for (let count = random.below(3); count > 0; count -= 1) {
      bytes[random.below(bytes.length)] = random.below(256);
    }
    for (let at = 0; at < bytes.length; ) {
      const end = at + 1 + random.below(200);
      stream.onData(bytes.subarray(at, end));
      at = end;
    }
    // A control byte brings it into step; twice, as the first may be within an escape.
    stream.receive('\u0001\u0001{"execute":"nope","id":"last"}');
    let done = false;
    session.inputEnded(() => {
      done = true;
    });
    for (let turn = 0; turn < 1000 && !done; turn += 1) await null;
    expect(done).toBe(true);
    const replies = stream
      .take()
      .split("\r\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line));
    expect(replies.at(-1)).toMatchObject({ id: "last", error: { class: "CommandNotFound" } });
  }
});
