import { afterEach, describe, expect, test } from "bun:test";
import { inflateRawSync } from "node:zlib";
import {
  CODEC_DEFLATE,
  CODEC_INFLATE,
  CODEC_UNZSTD,
  CODEC_ZSTD,
  CodecRunner,
  codecArgs,
  runCodec,
} from "../../../src/io/codecs.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { EINVAL, EIO, ENOSPC } from "../../../src/runtime/errno.ts";
import { pattern } from "../../support/images.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";

const PLAIN = 4096;
const PACKED_AT = 8192;
const BACK_AT = 65_536;
const ways = [
  { name: "deflate", pack: CODEC_DEFLATE, unpack: CODEC_INFLATE },
  { name: "zstd", pack: CODEC_ZSTD, unpack: CODEC_UNZSTD },
];

/** Of a cluster that is half noise. */
function plainBytes(): Uint8Array<ArrayBuffer> {
  const plain = new Uint8Array(PLAIN).fill(7);
  plain.set(pattern(PLAIN / 2, 3));
  return plain;
}

function placeOf(source: number, sourceBytes: number, target: number, targetBytes: number) {
  return { address: 0, bytes: 0, source, sourceBytes, target, targetBytes };
}

describe("runCodec()", () => {
  for (const { name, pack, unpack } of ways) {
    test(`${name} comes back, whole and never longer than asked`, () => {
      const memory = new Uint8Array(128 * 1024);
      memory.set(plainBytes());
      const packed = runCodec(pack, memory, placeOf(0, PLAIN, PACKED_AT, PLAIN - 1));
      expect(packed).toBeGreaterThan(PLAIN / 2);
      expect(packed).toBeLessThan(PLAIN);
      const back = placeOf(PACKED_AT, packed, BACK_AT, PLAIN);
      expect(runCodec(unpack, memory, back)).toBe(PLAIN);
      expect(memory.slice(BACK_AT, BACK_AT + PLAIN)).toEqual(plainBytes());
      expect(runCodec(unpack, memory, { ...back, targetBytes: PLAIN - 1 })).toBe(-EIO);
    });

    test(`${name} says when it does not get shorter, and writes nothing`, () => {
      const memory = new Uint8Array(128 * 1024);
      memory.set(pattern(PLAIN, 5));
      expect(runCodec(pack, memory, placeOf(0, PLAIN, PACKED_AT, PLAIN - 1))).toBe(-ENOSPC);
      expect(memory.subarray(PACKED_AT).every((byte) => byte === 0)).toBe(true);
    });

    test(`${name} of noise is no stream`, () => {
      const memory = new Uint8Array(128 * 1024);
      memory.set(pattern(PLAIN, 9).fill(0xff, 0, 64));
      expect(runCodec(unpack, memory, placeOf(0, PLAIN, BACK_AT, PLAIN))).toBe(-EIO);
    });

    test(`${name} that would grow without end stops`, () => {
      const bomb = 16 * 1024 * 1024;
      const memory = new Uint8Array(bomb + 256 * 1024);
      const packed = runCodec(pack, memory, placeOf(0, bomb, bomb, 256 * 1024));
      expect(packed).toBeGreaterThan(0);
      const back = placeOf(bomb, packed, 0, PLAIN);
      expect(runCodec(unpack, memory, back)).toBe(-EIO);
    });
  }

  test("inflates what other data follows", () => {
    const memory = new Uint8Array(128 * 1024).fill(0x55);
    memory.set(plainBytes());
    const packed = runCodec(CODEC_DEFLATE, memory, placeOf(0, PLAIN, PACKED_AT, PLAIN - 1));
    const back = placeOf(PACKED_AT, packed + 300, BACK_AT, PLAIN);
    expect(runCodec(CODEC_INFLATE, memory, back)).toBe(PLAIN);
  });

  test("deflates with a window that others have, too", () => {
    const memory = new Uint8Array(256 * 1024);
    // The second half is the first one again, but beyond 4 KiB.
    memory.set(pattern(8192, 1));
    memory.set(pattern(8192, 1), 8192);
    const packed = runCodec(CODEC_DEFLATE, memory, placeOf(0, 16_384, 32_768, 32_768));
    const stream = memory.slice(32_768, 32_768 + packed);
    const back = inflateRawSync(stream, { windowBits: 12 });
    expect(new Uint8Array(back)).toEqual(memory.slice(0, 16_384));
  });
});

describe("IoEngine.call() of a codec", () => {
  let reactor: Reactor;
  afterEach(() => {
    reactor.engine.close();
    reactor.memory.unmap();
  });

  for (const engine of ENGINES) {
    test(`runs on a thread: ${engine}`, async () => {
      reactor = makeReactor(engine);
      const { memory } = reactor;
      memory.u8.set(plainBytes());
      const call = (codec: number, ...place: Parameters<typeof placeOf>): Promise<number> => {
        const { address, bytes } = memory;
        const args = codecArgs({ ...placeOf(...place), address, bytes });
        return runOn(reactor, () => reactor.op((io, token) => io.call(codec, args, token)));
      };
      for (const { pack, unpack } of ways) {
        const packed = await call(pack, 0, PLAIN, PACKED_AT, PLAIN - 1);
        expect(await call(unpack, PACKED_AT, packed, BACK_AT, PLAIN)).toBe(PLAIN);
        expect(memory.u8.slice(BACK_AT, BACK_AT + PLAIN)).toEqual(plainBytes());
        expect(await call(unpack, PACKED_AT, packed, BACK_AT, PLAIN - 1)).toBe(-EIO);
      }
    });
  }
});

describe("CodecRunner", () => {
  test("looks at each mapping through one view", () => {
    const views: number[] = [];
    const buffers = new Map([1, 2].map((at) => [at, new ArrayBuffer(65_536)]));
    const view = (address: number): ArrayBuffer => {
      views.push(address);
      return buffers.get(address)!;
    };
    const ffi = { view, syscall: () => 0, syscall32: () => 0 };
    const runner = new CodecRunner(ffi);
    for (const address of [1, 2, 1, 2]) {
      const place = { ...placeOf(0, PLAIN, PACKED_AT, PLAIN), address, bytes: 65_536 };
      expect(runner.run(CODEC_DEFLATE, Float64Array.from(codecArgs(place)))).toBeGreaterThan(0);
    }
    expect(views).toEqual([1, 2]);
    expect(runner.run(-99, new Float64Array(6))).toBe(-EINVAL);
  });
});
