import { describe, expect, test } from "bun:test";
import { directAlignment } from "../../../../../src/block/drivers/file/alignment.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { EINVAL } from "../../../../../src/runtime/errno.ts";
import type { FileStatus } from "../../../../../src/runtime/linux.ts";

const ADDRESS = 1 << 20;

/** A host that takes reads of these alignments only; 1: everything. */
function makeReactor(request: number, memory: number): { reactor: Reactor; freed: () => number } {
  let inUse = 0;
  const reactor = {
    memory: { address: ADDRESS },
    buffers: { free: () => inUse-- },
    allocate: async () => {
      inUse++;
      return 0;
    },
    linux: {
      pread: (_fd: number, address: number, bytes: number) =>
        address % memory === 0 && bytes % request === 0 ? bytes : -EINVAL,
    },
  } as unknown as Reactor;
  return { reactor, freed: () => inUse };
}

const regular = {
  mode: 0o100644,
  directMemoryAlignment: 0,
  directOffsetAlignment: 0,
} as FileStatus;

describe("directAlignment()", () => {
  test("finds by trial what the host doesn't say", async () => {
    for (const request of [512, 1024, 4096]) {
      for (const memory of [512, 2048, 4096]) {
        const { reactor, freed } = makeReactor(request, memory);
        expect(await directAlignment(reactor, 3, regular)).toEqual({ request, memory });
        expect(freed()).toBe(0);
      }
    }
  });

  test("believes what the host says", async () => {
    const { reactor } = makeReactor(512, 512);
    const status = { ...regular, directOffsetAlignment: 4096 };
    expect(await directAlignment(reactor, 3, status)).toEqual({ request: 4096, memory: 512 });
    const both = { ...status, directMemoryAlignment: 2048 };
    expect(await directAlignment(reactor, 3, both)).toEqual({ request: 4096, memory: 2048 });
  });

  test("refuses blocks that no buffer holds", async () => {
    const { reactor } = makeReactor(512, 512);
    const status = { ...regular, directOffsetAlignment: 2 ** 20 };
    await expect(directAlignment(reactor, 3, status)).rejects.toThrow("O_DIRECT alignment");
  });

  test("asks for whole sectors of memory where the host would take less", async () => {
    const { reactor } = makeReactor(1, 1);
    const status = { ...regular, directMemoryAlignment: 4 };
    expect(await directAlignment(reactor, 3, status)).toEqual({ request: 4096, memory: 512 });
  });

  test("is careful where a trial says nothing", async () => {
    const { reactor } = makeReactor(1, 1);
    expect(await directAlignment(reactor, 3, regular)).toEqual({ request: 4096, memory: 4096 });
  });

  test("gives up where nothing works", async () => {
    const { reactor, freed } = makeReactor(8192, 512);
    await expect(directAlignment(reactor, 3, regular)).rejects.toThrow(
      "Could not find working O_DIRECT alignment",
    );
    expect(freed()).toBe(0);
  });
});
