/** AdaptivePolling against an engine and a clock that a test moves by hand. */
import { describe, expect, test } from "bun:test";
import type { IoEngine } from "../../../src/io/engine.ts";
import { AdaptivePolling, type PollingOptions, type PollSource } from "../../../src/io/polling.ts";

const DEFAULTS: PollingOptions = { pollMaxNs: 32_768, pollGrow: 0, pollShrink: 0 };
const LOOK_NS = 100;

/** An event comes at `eventNs`; a sleep lasts until then, or its timeout. */
class Scene {
  nowNs = 0;
  eventNs = 0;
  /** Timeouts of the waits that slept. */
  sleeps: number[] = [];
  looks = 0;
  clockReads = 0;
  readonly engine: IoEngine;

  constructor(looksForFree: boolean) {
    const scene = this;
    const engine = {
      wait(timeoutNs: number): number {
        if (scene.nowNs >= scene.eventNs) return 1;
        if (timeoutNs === 0) {
          scene.looks++;
          scene.nowNs += LOOK_NS;
          return 0;
        }
        scene.sleeps.push(timeoutNs);
        const untilNs = scene.nowNs + timeoutNs;
        scene.nowNs = Math.min(untilNs, scene.eventNs);
        return scene.nowNs === scene.eventNs ? 1 : 0;
      },
      hasWork: (): boolean => {
        scene.nowNs += LOOK_NS / 16;
        return scene.nowNs >= scene.eventNs;
      },
    };
    const { wait } = engine;
    this.engine = (looksForFree ? engine : { wait }) as unknown as IoEngine;
  }

  /** One wait(), with an event after `eventInNs`. */
  wait(polling: AdaptivePolling, eventInNs: number, timeoutNs = Infinity): void {
    this.eventNs = this.nowNs + eventInNs;
    this.sleeps = [];
    this.looks = 0;
    this.clockReads = 0;
    polling.wait(this.engine, timeoutNs, () => {
      this.clockReads++;
      return this.nowNs;
    });
  }
}

/** Has work at `workNs`; others bring it as long as it doesn't allow sleep. */
class Source implements PollSource {
  workNs = Infinity;
  done = 0;
  isSilent = true;
  readonly #scene: Scene;

  constructor(scene: Scene) {
    this.#scene = scene;
  }

  poll(): boolean {
    if (this.#scene.nowNs < this.workNs) return false;
    this.workNs = Infinity;
    this.isSilent = true;
    this.done++;
    return true;
  }

  allowSleep(): boolean {
    this.isSilent = false;
    return this.#scene.nowNs >= this.workNs;
  }
}

describe("AdaptivePolling with a source", () => {
  const make = (options = DEFAULTS) => {
    const scene = new Scene(true);
    const polling = new AdaptivePolling(options);
    const source = new Source(scene);
    polling.sources.push(source);
    return { scene, polling, source };
  };

  test("does the source's work in every turn, also while the engine is busy", () => {
    const { scene, polling, source } = make();
    source.workNs = 0;
    scene.wait(polling, 0);
    expect(source.done).toBe(1);
    expect(scene.sleeps).toEqual([]);
  });

  test("lets the engine do at once what the source has begun", () => {
    const { scene, polling, source } = make();
    const waits: string[] = [];
    const { engine } = scene;
    const { wait } = engine;
    engine.wait = (timeoutNs) => {
      waits.push(`${source.done} done, ${timeoutNs} ns`);
      return wait(timeoutNs);
    };
    source.workNs = 0;
    scene.wait(polling, 1e9);
    expect(waits).toEqual(["0 done, 0 ns", "1 done, 0 ns"]);
  });

  test("finds work of the source while it polls, and sleeps only when that may wake it", () => {
    const { scene, polling, source } = make();
    for (let i = 0; i < 10; i++) scene.wait(polling, 20_000);
    expect(polling.pollNs).toBeGreaterThan(10_000);
    source.workNs = scene.nowNs + 5_000;
    scene.wait(polling, 1e9);
    expect(source.done).toBe(1);
    expect(scene.sleeps).toEqual([]);
    expect(source.isSilent).toBe(true);
    scene.wait(polling, 1e9);
    expect(scene.sleeps.length).toBe(1);
    expect(source.isSilent).toBe(false);
  });

  test("does not sleep on what came before the source allowed it", () => {
    const { scene, polling, source } = make({ ...DEFAULTS, pollMaxNs: 0 });
    source.poll = () => false;
    source.workNs = 0;
    scene.wait(polling, 1e9);
    expect(scene.sleeps).toEqual([]);
  });

  test("neither polls nor sleeps when it must not wait", () => {
    const { scene, polling, source } = make();
    source.isSilent = true;
    scene.wait(polling, 1e9, 0);
    expect(scene.sleeps).toEqual([]);
    expect(source.isSilent).toBe(true);
  });
});

for (const looksForFree of [true, false]) {
  describe(`AdaptivePolling, hasWork() ${looksForFree ? "offered" : "absent"}`, () => {
    test("grows while events come soon, then finds them without sleeping", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling(DEFAULTS);
      const learned: number[] = [];
      for (let i = 0; i < 5; i++) {
        scene.wait(polling, 20_000);
        learned.push(polling.pollNs);
      }
      expect(learned).toEqual([4000, 8000, 16_000, 32_000, 32_000]);
      expect(scene.sleeps).toEqual([]);
    });

    test("never grows beyond pollMaxNs", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling({ ...DEFAULTS, pollMaxNs: 10_000, pollGrow: 3 });
      for (let i = 0; i < 4; i++) scene.wait(polling, 9000);
      expect(polling.pollNs).toBe(10_000);
    });

    test("sleeps at once after it polled in vain", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling(DEFAULTS);
      for (let i = 0; i < 5; i++) scene.wait(polling, 20_000);
      scene.wait(polling, 1_000_000_000);
      expect(scene.sleeps).toHaveLength(1);
      expect(polling.pollNs).toBe(0);
      scene.wait(polling, 1_000_000_000);
      expect(scene.looks).toBe(1);
    });

    test("shrinks by pollShrink", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling({ ...DEFAULTS, pollShrink: 4 });
      for (let i = 0; i < 5; i++) scene.wait(polling, 20_000);
      scene.wait(polling, 1_000_000);
      expect(polling.pollNs).toBe(8000);
    });

    test("a timeout without an event shrinks, too, and is kept", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling(DEFAULTS);
      for (let i = 0; i < 5; i++) scene.wait(polling, 20_000);
      const startNs = scene.nowNs;
      scene.wait(polling, 1_000_000, 10_000);
      expect(scene.nowNs - startNs).toBeGreaterThanOrEqual(10_000);
      expect(scene.nowNs - startNs).toBeLessThan(10_500);
      expect(polling.pollNs).toBe(0);
    });

    test("doesn't look at the clock when there is work", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling(DEFAULTS);
      scene.wait(polling, 0);
      expect(scene.clockReads).toBe(0);
      expect(scene.sleeps).toEqual([]);
    });

    test("pollMaxNs 0 never polls, nor does a wait without time", () => {
      const scene = new Scene(looksForFree);
      const polling = new AdaptivePolling({ ...DEFAULTS, pollMaxNs: 0 });
      for (let i = 0; i < 5; i++) scene.wait(polling, 5000);
      expect(scene.looks).toBe(0);
      expect(scene.sleeps).toEqual([Infinity]);
      polling.configure(DEFAULTS);
      scene.wait(polling, 5000, 0);
      expect(scene.looks).toBe(1);
      expect(scene.clockReads).toBe(0);
    });
  });
}
