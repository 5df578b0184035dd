/**
 * The transmission phase in the test's own thread: good clients check every byte against a model
 * while bad ones send valid, mutated and torn requests and vanish. Nothing may stay behind.
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from "../../src/abi/nbd.ts";
import { file } from "../../src/block/drivers/file/index.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../src/block/node.ts";
import { ALLOCATION_DEPTH, BASE_ALLOCATION } from "../../src/exports/nbd/meta-context.ts";
import { openContext } from "../support/block.ts";
import { KiB, MiB, pattern } from "../support/images.ts";
import { NbdRig, type Peer } from "../support/nbd-rig.ts";
import { request } from "../support/nbd-wire.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { ENGINES, runOn } from "../support/reactor.ts";

/** The longest time without any reply to a good client, on a busy machine too. */
const PATIENCE_MS = 45_000;
setDefaultTimeout(900_000);

const MODES = ["simple", "structured", "extended"] as const;
/** The good clients' part of the disk; the bad ones change what lies beyond. */
const GOOD_BYTES = 3 * MiB;
const BAD_BYTES = MiB;
const GOOD_CLIENTS = 4;
/** No multiple of a block: neighbours share one. */
const REGION_BYTES = GOOD_BYTES / GOOD_CLIENTS - 77;
/** Requests in flight of one good client; each has a slice of its own. */
const SLICES = 12;
const BAD_CLIENTS = 4;
const BAD_REQUESTS = 12;
const OFFSET_AT = 16;

const seed = randomSeed();
const requestsEach = fuzzCases(400);
const folder = mkdtempSync(join(tmpdir(), "outport-fuzz-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Keeps its slices busy and knows what they must read as. */
class GoodClient {
  done = 0;
  #peer: Peer;
  #random: Random;
  #model: Uint8Array;
  #start: number;
  /** By slice: the request in flight. */
  #busy: ({ cookie: number; check: () => void } | null)[] = new Array(SLICES).fill(null);

  constructor(peer: Peer, random: Random, model: Uint8Array, index: number) {
    this.#peer = peer;
    this.#random = random;
    this.#model = model;
    this.#start = index * REGION_BYTES;
  }

  get idle(): boolean {
    return this.#busy.every((slot) => slot === null);
  }

  step(start: boolean): void {
    if (this.#peer.ended) throw new Error("the server dropped a good client");
    for (let slice = 0; slice < SLICES; slice++) {
      const busy = this.#busy[slice]!;
      if (busy !== null) {
        const reply = this.#peer.replies.get(busy.cookie);
        if (reply === undefined) continue;
        busy.check();
        this.#peer.replies.delete(busy.cookie);
        this.#busy[slice] = null;
        this.done++;
      } else if (start && this.#random.chance(0.5)) {
        this.#busy[slice] = this.#begin(slice);
      }
    }
  }

  #begin(slice: number): { cookie: number; check: () => void } {
    const random = this.#random;
    const peer = this.#peer;
    const sliceBytes = Math.floor(REGION_BYTES / SLICES);
    const low = this.#start + slice * sliceBytes;
    const begin = random.chance(0.2) ? 0 : random.below(sliceBytes);
    const limit = random.chance(0.5) ? 4 * KiB : sliceBytes;
    const bytes = Math.min(random.below(limit + 1), sliceBytes - begin);
    const offset = low + begin;
    const part = this.#model.subarray(offset, offset + bytes);
    const fua = random.chance(0.1) ? NBD_CMD_FLAG_FUA : 0;
    const type = random.pick([
      ...[NBD_CMD_READ, NBD_CMD_READ, NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_WRITE, NBD_CMD_WRITE],
      ...[NBD_CMD_WRITE_ZEROES, NBD_CMD_TRIM, NBD_CMD_FLUSH, NBD_CMD_CACHE],
    ]);
    const what = `${peer.mode} type ${type}: ${bytes} bytes at ${offset}, seed ${seed}`;
    let flags = fua;
    let payload: Uint8Array | undefined;
    if (type === NBD_CMD_READ && peer.mode !== "simple" && random.chance(0.3)) {
      flags |= NBD_CMD_FLAG_DF;
    } else if (type === NBD_CMD_WRITE) {
      payload = pattern(bytes, random.u32());
      part.set(payload);
      if (peer.mode === "extended") flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    } else if (type === NBD_CMD_WRITE_ZEROES) {
      part.fill(0);
      if (random.chance(0.5)) flags |= NBD_CMD_FLAG_NO_HOLE;
    }
    const expected = part.slice();
    const range = type === NBD_CMD_FLUSH ? { offset: 0, bytes: 0 } : { offset, bytes };
    const options = payload === undefined ? { flags } : { flags, payload };
    const cookie = peer.request(type, range.offset, range.bytes, options);
    const check = () => {
      const reply = peer.replies.get(cookie)!;
      expect([what, reply.error]).toEqual([what, 0]);
      if (type !== NBD_CMD_READ) return;
      const same = Buffer.compare(reply.data(), expected) === 0;
      expect([what, same]).toEqual([what, true]);
    };
    return { cookie, check };
  }
}

/** Requests that change nothing of the good clients' part, whatever becomes of them. */
function badBytes(random: Random, extended: boolean): Uint8Array[] {
  const parts: Uint8Array[] = [];
  for (let i = random.below(BAD_REQUESTS); i >= 0; i--) {
    const type = random.chance(0.9) ? random.below(8) : random.below(65536);
    const far = [2 ** 53, 2n ** 63n, 2n ** 64n - 1n, GOOD_BYTES + BAD_BYTES];
    const near = GOOD_BYTES + random.below(BAD_BYTES);
    const offset = random.chance(0.1) ? random.pick(far) : near;
    const odd = [0, 1, 2 ** 25, 2 ** 25 + 1, 2 ** 32 - 1];
    const size = random.chance(0.3) ? 300 * KiB : 6 * KiB;
    const length = random.chance(0.1) ? random.pick(odd) : random.below(size);
    const flags = random.chance(0.5) ? 0 : random.below(64);
    const header = request({ type, flags, cookie: random.u32(), offset, length }, extended);
    if (random.chance(0.03)) {
      const at = random.below(header.length);
      if (at < OFFSET_AT || at >= OFFSET_AT + 8) header[at]! ^= 1 << random.below(8);
    }
    parts.push(header);
    const payload = type === NBD_CMD_WRITE || (flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0;
    if (payload && length < MiB && random.chance(0.95)) parts.push(pattern(length, random.u32()));
  }
  if (random.chance(0.2)) parts.push(request({ type: NBD_CMD_DISC }, extended));
  return parts;
}

/** Sends something, lingers, goes. */
class BadClient {
  #rig: NbdRig;
  #random: Random;
  #peer: Peer | null = null;
  #turnsLeft = 0;

  constructor(rig: NbdRig, random: Random) {
    this.#rig = rig;
    this.#random = random;
  }

  step(): void {
    const random = this.#random;
    if (this.#peer === null) {
      const mode = random.pick(MODES);
      this.#peer = this.#rig.peer(mode);
      this.#peer.parses = false;
      this.#peer.reads = random.chance(0.7);
      this.#peer.sendBytesMax = random.pick([1, 13, 500, 4096, 100_000, Infinity]);
      this.#peer.push(...badBytes(random, mode === "extended"));
      this.#turnsLeft = random.below(60);
    } else if (this.#turnsLeft-- <= 0) {
      this.#peer.close();
      this.#rig.peers.splice(this.#rig.peers.indexOf(this.#peer), 1);
      this.#peer = null;
    } else if (random.chance(0.1)) {
      this.#peer.reads = !this.#peer.reads;
    }
  }
}

const VARIANTS = [
  ["through the page cache", {}],
  ["past the page cache", { cacheDirect: true }],
  ["detecting zeroes", { detectZeroes: "unmap", discardUnmap: false }],
] as const;

for (const engine of ENGINES) {
  describe(`transmission on ${engine}`, () => {
    for (const [name, options] of VARIANTS) {
      test(`keeps every byte ${name}`, async () => {
        const random = new Random(seed);
        const path = join(folder, "image");
        const model = pattern(GOOD_BYTES + BAD_BYTES, seed);
        writeFileSync(path, model);
        const rig = new NbdRig(engine);
        const { reactor } = rig;
        const context = openContext(reactor, { ...options, options: { filename: path } });
        const node = await runOn(reactor, () => file.open(context));
        await node.setPermissions(PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
        rig.serve(node, { contexts: [BASE_ALLOCATION, ALLOCATION_DEPTH] });
        const good = Array.from({ length: GOOD_CLIENTS }, (_, index) => {
          const peer = rig.peer(MODES[index % MODES.length]!);
          return new GoodClient(peer, random, model, index);
        });
        const bad = Array.from({ length: BAD_CLIENTS }, () => new BadClient(rig, random));
        const step = (start: boolean) => {
          for (const client of good) client.step(start && client.done < requestsEach);
        };
        const finished = () => good.every(({ idle, done }) => idle && done >= requestsEach);
        let replies = 0;
        let endMs = Date.now() + PATIENCE_MS;
        while (!finished()) {
          step(true);
          const progress = good.map(({ done }) => done);
          const now = progress.reduce((sum, done) => sum + done);
          if (now > replies) endMs = Date.now() + PATIENCE_MS;
          else if (Date.now() > endMs) {
            throw new Error(`a reply is missing, seed ${seed}: ${progress} of ${requestsEach}`);
          }
          replies = now;
          for (const client of bad) client.step();
          await rig.turn();
        }
        const extents = await rig.ask(rig.peer("extended"), NBD_CMD_BLOCK_STATUS, 0, GOOD_BYTES);
        expect(extents.statuses().map(({ contextId }) => contextId)).toEqual([0, 1]);
        await rig.end();
        expect(rig.fdsLeft).toBeLessThanOrEqual(0);
        const final = readFileSync(path);
        expect(final.length).toBe(model.length);
        const same = final.subarray(0, GOOD_BYTES).equals(model.subarray(0, GOOD_BYTES));
        expect([seed, same]).toEqual([seed, true]);
      });
    }
  });
}
