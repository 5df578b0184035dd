/** The crash tests themselves: they must pass what is right, and find what is wrong. */
import { afterAll, describe, expect, test } from "bun:test";
import { Random } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import { SECTOR_BYTES, SimDisk } from "./disk.ts";
import { runManyPowerCuts, runPowerCuts } from "./power-cut.ts";
import { type ToyFault, toySubject } from "./toy-format.ts";

const reactor = makeReactor("epoll");

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

/** What the first seed that finds the fault says. */
async function findFault(fault: ToyFault): Promise<string> {
  try {
    await runManyPowerCuts(reactor, toySubject(fault), 1, 200);
  } catch (error) {
    return (error as Error).message;
  }
  return "nothing was found";
}

describe("runPowerCuts()", () => {
  test("passes a format that keeps to its order", async () => {
    await runManyPowerCuts(reactor, toySubject(null), 1, 60);
  });

  test("passes it also when the disk fails at times", async () => {
    await runManyPowerCuts(reactor, toySubject(null), 1, 30, { failures: 0.02 });
  });

  test("finds a table written before its data", async () => {
    expect(await findFault("table before data")).toMatch(/^seed \d+: .*sector \d+: /);
  });

  test("finds a flush that is nothing", async () => {
    expect(await findFault("no flush")).toMatch(/^seed \d+: .*sector \d+: version/);
  });

  test("finds two requests that take one cluster", async () => {
    expect(await findFault("shared cluster")).toMatch(/^seed \d+: /);
  });

  test("does the same again with the same seed", async () => {
    const said = await findFault("table before data");
    const seed = Number(/\d+/.exec(said)![0]);
    let again = "";
    try {
      await runPowerCuts(reactor, toySubject("table before data"), seed);
    } catch (error) {
      again = (error as Error).message;
    }
    expect(again).toBe(said);
  });
});

describe("SimDisk", () => {
  const BYTES = 8 * SECTOR_BYTES;

  async function cutAfter(seed: number, work: (disk: SimDisk) => Promise<number>[]) {
    const disk = new SimDisk(new Random(seed), new Uint8Array(BYTES));
    const results = work(disk);
    while (disk.step());
    expect(await Promise.all(results)).toEqual(results.map(() => 0));
    return { disk, left: disk.cut() };
  }

  test("keeps what was flushed", async () => {
    for (let seed = 0; seed < 50; seed++) {
      const disk = new SimDisk(new Random(seed), new Uint8Array(BYTES));
      disk.write(0, new Uint8Array(BYTES).fill(1));
      while (disk.step());
      disk.flush();
      while (disk.step());
      expect(disk.cut()).toEqual(new Uint8Array(BYTES).fill(1));
    }
  });

  test("keeps, drops and tears what was not, by whole sectors", async () => {
    const seen = new Set<string>();
    for (let seed = 0; seed < 100; seed++) {
      const { left } = await cutAfter(seed, (disk) => [
        disk.write(0, new Uint8Array(BYTES).fill(1)),
      ]);
      const sectors = Array.from({ length: 8 }, (_, i) => {
        const sector = left.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
        expect(new Set(sector).size).toBe(1);
        return sector[0];
      });
      const count = sectors.filter((value) => value === 1).length;
      seen.add(count === 0 ? "none" : count === 8 ? "all" : "some");
    }
    expect([...seen].sort()).toEqual(["all", "none", "some"]);
  });

  test("may grow without its data", async () => {
    const lengths = new Set<number>();
    for (let seed = 0; seed < 100; seed++) {
      const { left } = await cutAfter(seed, (disk) => [
        disk.write(BYTES, new Uint8Array(SECTOR_BYTES).fill(2)),
      ]);
      lengths.add(left.length);
      expect([0, 2, undefined]).toContain(left[BYTES]);
    }
    expect([...lengths].sort()).toEqual([BYTES, BYTES + SECTOR_BYTES]);
  });

  test("answers nothing after the cut", async () => {
    const { disk } = await cutAfter(1, (one) => [one.flush()]);
    expect(await disk.write(0, new Uint8Array(1))).toBeLessThan(0);
    expect(await disk.flush()).toBeLessThan(0);
    expect(disk.inFlight).toBe(0);
  });
});
