/** BufferPool, against a memory that only counts pages, and against a model. */
import { describe, expect, test } from "bun:test";
import {
  BUFFER_BYTES_MAX,
  BUFFER_BYTES_MIN,
  BufferPool,
  HEADROOM_BYTES,
} from "../../../src/io/buffers.ts";
import { NONE } from "../../../src/io/requests.ts";
import { Random, randomSeed } from "../../support/random.ts";

const MIB = 1024 * 1024;
const STRIDE_MAX = BUFFER_BYTES_MAX + HEADROOM_BYTES;

class Scene {
  readonly pool: BufferPool;
  released: [at: number, bytes: number][] = [];
  /** Delays that the pool asked for and that did not pass yet. */
  trims: number[] = [];
  resumes = 0;

  constructor(bytesMax: number, at = 0) {
    const memory = {
      bytes: at + BufferPool.reservedBytes(bytesMax),
      release: (start: number, bytes: number) => {
        this.released.push([start, bytes]);
      },
    };
    this.pool = new BufferPool(memory, { bytesMax, at });
    this.pool.connect({
      resumeSoon: () => {
        this.resumes++;
      },
      trimLater: (delayNs) => this.trims.push(delayNs),
    });
  }

  /** Lets all the time pass that the pool asks for. Returns how many ticks that took. */
  passTime(): number {
    let ticks = 0;
    while (this.trims.length > 0) {
      this.trims.shift();
      this.pool.trim();
      if (++ticks > 1000) throw new Error("The pool wakes up for ever");
    }
    return ticks;
  }
}

describe("BufferPool", () => {
  test("allocate() gives page-aligned payloads of the class, with headroom", () => {
    const at = 16_384;
    const { pool } = new Scene(8 * MIB, at);
    const sizes = [1, 4096, 4097, 65_536, 65_537, 600_000, BUFFER_BYTES_MAX];
    const expected = [4096, 4096, 8192, 65_536, 131_072, MIB, MIB];
    const payloads = sizes.map((bytes) => pool.allocate(bytes));
    expect(payloads.every((payload) => payload % 4096 === 0)).toBe(true);
    expect(Math.min(...payloads)).toBeGreaterThanOrEqual(at + HEADROOM_BYTES);
    expect(payloads.map((payload) => pool.bytesOf(payload))).toEqual(expected);
    const sum = expected.reduce((total, bytes) => total + bytes + HEADROOM_BYTES, 0);
    expect(pool.bytesInUse).toBe(sum);
    for (const payload of payloads) pool.free(payload);
    expect(pool.bytesInUse).toBe(0);
  });

  test("the buffer freed last is handed out first", () => {
    const { pool } = new Scene(8 * MIB);
    const [a, b] = [pool.allocate(4096), pool.allocate(4096)];
    pool.free(a);
    pool.free(b);
    expect([pool.allocate(100), pool.allocate(100)]).toEqual([b, a]);
  });

  test("allocate() says NONE at the limit, for every size", () => {
    for (let bytes = BUFFER_BYTES_MIN; bytes <= BUFFER_BYTES_MAX; bytes *= 2) {
      const { pool } = new Scene(4 * MIB);
      const count = Math.floor((4 * MIB) / (bytes + HEADROOM_BYTES));
      const payloads = new Set<number>();
      for (let i = 0; i < count; i++) payloads.add(pool.allocate(bytes));
      expect(payloads.size).toBe(count);
      expect(payloads.has(NONE)).toBe(false);
      expect(pool.allocate(bytes)).toBe(NONE);
      pool.free([...payloads][0]!);
      expect(pool.allocate(bytes)).not.toBe(NONE);
    }
  });

  test("a buffer is not freed twice, nor one that is none", () => {
    const { pool } = new Scene(2 * MIB);
    const payload = pool.allocate(4096);
    pool.free(payload);
    expect(() => pool.free(payload)).toThrow("freed once");
    expect(() => pool.free(payload + 4096)).toThrow("freed once");
    expect(() => pool.bytesOf(payload)).toThrow("in use");
  });
});

describe("BufferPool.onAvailable()", () => {
  test("resumes in the order of asking, whatever the sizes", () => {
    const scene = new Scene(2 * STRIDE_MAX);
    const { pool } = scene;
    const held = [pool.allocate(MIB), pool.allocate(MIB)];
    const order: string[] = [];
    const ask = (name: string, bytes: number) =>
      pool.onAvailable(bytes, () => {
        const payload = pool.allocate(bytes);
        expect(payload).not.toBe(NONE);
        order.push(name);
      });
    ask("large", MIB);
    ask("small", 4096);
    pool.resume();
    expect(order).toEqual([]);
    pool.free(held[0]!);
    // Who didn't wait doesn't get what others wait for.
    expect(pool.allocate(4096)).toBe(NONE);
    expect(scene.resumes).toBeGreaterThan(0);
    pool.resume();
    expect(order).toEqual(["large"]);
    pool.free(held[1]!);
    pool.resume();
    expect(order).toEqual(["large", "small"]);
    expect(pool.allocate(4096)).not.toBe(NONE);
  });

  test("a waiter gets one buffer ahead of those behind it", () => {
    const { pool } = new Scene(STRIDE_MAX);
    const held = pool.allocate(MIB);
    const got: number[][] = [];
    for (let i = 0; i < 3; i++) {
      pool.onAvailable(4096, () => got.push([pool.allocate(4096), pool.allocate(4096)]));
    }
    pool.free(held);
    pool.resume();
    expect(got).toHaveLength(3);
    expect(got[0]![1]).toBe(NONE);
    expect(got[1]![1]).toBe(NONE);
    expect(got.every(([first]) => first !== NONE)).toBe(true);
  });

  test("who asks again while resumed has its next turn in the next resume()", () => {
    const scene = new Scene(STRIDE_MAX);
    let turns = 0;
    const again = () => {
      turns++;
      scene.pool.onAvailable(4096, again);
    };
    scene.pool.onAvailable(4096, again);
    scene.pool.resume();
    expect(turns).toBe(1);
    expect(scene.resumes).toBe(2);
    scene.pool.resume();
    expect(turns).toBe(2);
  });
});

describe("BufferPool.trim()", () => {
  test("gives back what was not needed, and then asks for no more time", () => {
    const scene = new Scene(64 * MIB);
    const { pool } = scene;
    const payloads = Array.from({ length: 40 }, () => pool.allocate(MIB));
    expect(scene.trims).toHaveLength(0);
    for (const payload of payloads) pool.free(payload);
    expect(scene.trims).toHaveLength(1);
    expect(pool.bytesResident).toBe(40 * STRIDE_MAX);
    expect(scene.passTime()).toBeGreaterThan(8);
    expect(pool.bytesResident).toBe(0);
    expect(new Set(scene.released.map(([at]) => at)).size).toBe(40);
    expect(scene.released.every(([, bytes]) => bytes === STRIDE_MAX)).toBe(true);
    expect(scene.trims).toHaveLength(0);
  });

  test("keeps what is in use all the time", () => {
    const scene = new Scene(8 * MIB);
    const { pool } = scene;
    const payloads = Array.from({ length: 20 }, () => pool.allocate(4096));
    for (const payload of payloads) pool.free(payload);
    for (let tick = 0; tick < 10; tick++) {
      pool.free(pool.allocate(4096));
      scene.trims.shift();
      pool.trim();
    }
    expect(pool.bytesResident).toBe(4096 + HEADROOM_BYTES);
    expect(scene.released).toHaveLength(19);
  });

  test("gives back a bounded amount at once", () => {
    const scene = new Scene(64 * MIB);
    const payloads = Array.from({ length: 60 }, () => scene.pool.allocate(MIB));
    for (const payload of payloads) scene.pool.free(payload);
    scene.trims.shift();
    scene.pool.trim();
    scene.pool.trim();
    expect(scene.released.length).toBeLessThanOrEqual(5);
  });

  test("a load of another size makes what the old one left make room", () => {
    const scene = new Scene(4 * MIB);
    const { pool } = scene;
    const small = Array.from({ length: 500 }, () => pool.allocate(4096));
    for (const payload of small) pool.free(payload);
    for (let i = 0; i < 3; i++) expect(pool.allocate(MIB)).not.toBe(NONE);
    expect(pool.bytesResident).toBeLessThanOrEqual(4 * MIB);
    expect(scene.released.length).toBeGreaterThan(0);
  });
});

describe("BufferPool and a model", () => {
  test("thousands of random steps keep buffers apart and the counts right", () => {
    const random = new Random(randomSeed());
    const scene = new Scene(6 * MIB);
    const { pool } = scene;
    const inUse = new Map<number, number>();
    const pages = new Map<number, number>();
    let sum = 0;
    for (let step = 0; step < 20_000; step++) {
      const choice = random.below(100);
      if (choice < 55) {
        const bytes = 1 + random.below(2 ** (8 + random.below(13)));
        const payload = pool.allocate(Math.min(bytes, BUFFER_BYTES_MAX));
        const classBytes = Math.max(4096, 2 ** Math.ceil(Math.log2(bytes)));
        const stride = classBytes + HEADROOM_BYTES;
        expect(payload === NONE).toBe(sum + stride > pool.bytesMax);
        if (payload === NONE) continue;
        expect(pool.bytesOf(payload)).toBe(classBytes);
        for (let at = payload - HEADROOM_BYTES; at < payload + classBytes; at += 4096) {
          expect(pages.has(at)).toBe(false);
          pages.set(at, payload);
        }
        inUse.set(payload, stride);
        sum += stride;
      } else if (choice < 98 && inUse.size > 0) {
        const payload = [...inUse.keys()][random.below(inUse.size)]!;
        const stride = inUse.get(payload)!;
        pool.free(payload);
        inUse.delete(payload);
        for (let at = 0; at < stride; at += 4096) pages.delete(payload - HEADROOM_BYTES + at);
        sum -= stride;
      } else {
        pool.trim();
      }
      for (const [at, bytes] of scene.released) {
        for (let page = 0; page < bytes; page += 4096) expect(pages.has(at + page)).toBe(false);
      }
      scene.released = [];
      expect(pool.bytesInUse).toBe(sum);
      expect(pool.bytesResident).toBeGreaterThanOrEqual(sum);
      expect(pool.bytesResident).toBeLessThanOrEqual(pool.bytesMax);
    }
  });
});
