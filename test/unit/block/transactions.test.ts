import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { abortStep, runSteps, type Step } from "../../../src/block/transactions.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { OutportError } from "../../../src/util/error.ts";
import { type FakeIothread, FakeIothreads, messageOf } from "../../support/iothread.ts";

let main: FakeIothread;
let graph: BlockGraph;
let log: string[];

beforeEach(async () => {
  const iothreads = new FakeIothreads();
  main = iothreads.get(MAIN_LOOP);
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "n" });
  log = [];
});

const step =
  (name: string): Step =>
  async () => {
    expect(main.sections.size).toBe(1);
    const note = (what: string) => async (): Promise<void> => {
      expect(main.sections.size).toBe(1);
      log.push(`${what} ${name}`);
    };
    await note("run")();
    return { keep: note("keep"), undo: note("undo") };
  };

describe("runSteps()", () => {
  test("keeps all of them, in a drained section", async () => {
    await runSteps(graph, () => graph.nodes, [step("a"), step("b")]);
    expect(log).toEqual(["run a", "run b", "keep a", "keep b"]);
    expect(main.sections.size).toBe(0);
  });

  test("takes all back in reverse when one fails, and runs no more", async () => {
    const steps = [step("a"), step("b"), abortStep, step("c")];
    expect(await messageOf(runSteps(graph, () => graph.nodes, steps))).toBe(
      "Transaction aborted using Abort action",
    );
    expect(log).toEqual(["run a", "run b", "undo b", "undo a"]);
    expect(main.sections.size).toBe(0);
  });

  test("tells the first error, also when something can't be taken back", async () => {
    const broken: Step = async () => ({
      keep: async () => {},
      undo: async () => Promise.reject(new OutportError("io", "second")),
    });
    const failing: Step = async () => Promise.reject(new OutportError("io", "first"));
    const steps = [step("a"), broken, failing];
    expect(await messageOf(runSteps(graph, () => graph.nodes, steps))).toBe("first");
    expect(log).toEqual(["run a", "undo a"]);
  });

  test("changes the graph alone", async () => {
    const slow: Step = async () => {
      log.push("begin");
      await new Promise((resolve) => setTimeout(resolve, 5));
      return step("slow")();
    };
    const first = runSteps(graph, () => graph.nodes, [slow]);
    await Promise.all([first, runSteps(graph, () => graph.nodes, [step("b")])]);
    expect(log).toEqual(["begin", "run slow", "keep slow", "run b", "keep b"]);
  });
});
