/** The handshake against mutated conversations: bounded, well-formed, and never an exception. */
import { expect, test } from "bun:test";
import {
  NBD_EXPORT_NAME_REPLY_BYTES,
  NBD_EXPORT_NAME_ZEROES_BYTES,
  NBD_GREETING_BYTES,
} from "../../src/abi/nbd.ts";
import { NbdExports } from "../../src/exports/nbd/export-table.ts";
import { Handshake, OUTPUT_PENDING_MAX } from "../../src/exports/nbd/handshake.ts";
import { ALLOCATION_DEPTH, BASE_ALLOCATION } from "../../src/exports/nbd/meta-context.ts";
import { concat, option, parseOptionReplies, u32 } from "../support/nbd-wire.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { CASES } from "../unit/exports/nbd/handshake-cases.ts";

/** One reply may go over the limit: a name and a description. */
const OUTPUT_BYTES_MAX = OUTPUT_PENDING_MAX + 2 * 4096 + 64;
const INTERESTING = [0, 1, 3, 4, 255, 4096, 4097, 65535, 0x2000000, 0x2000001, 0xffffffff];

function offered(random: Random): NbdExports {
  const exports = new NbdExports();
  const names = ["disk", "", "maps", "direct", "x".repeat(79), "y".repeat(4096)];
  for (const [index, name] of names.slice(0, 1 + random.below(names.length)).entries()) {
    exports.add({
      ...{ id: `e${index}`, name, readOnly: random.chance(0.5), multiConn: true },
      description: random.pick([undefined, "", "words", "z".repeat(4096)]),
      bytes: random.pick([0, 512, 2 ** 32, Number.MAX_SAFE_INTEGER]),
      blockSize: { min: random.pick([1, 512, 4096]), preferred: 4096, max: 2 ** 25 },
      contexts: [BASE_ALLOCATION, ALLOCATION_DEPTH, { id: 2, name: "qemu:dirty-bitmap:bm1" }],
    });
  }
  return exports;
}

/** Changes a few bytes, cuts, repeats, or inserts. */
function mutate(random: Random, bytes: Uint8Array): Uint8Array {
  const at = random.below(bytes.length + 1);
  switch (random.below(6)) {
    case 0: {
      const changed = bytes.slice();
      for (let i = random.below(4); i >= 0; i--) changed[random.below(bytes.length)] = random.u32();
      return changed;
    }
    case 1:
      return bytes.slice(0, at);
    case 2:
      return concat(bytes.subarray(0, at), bytes.subarray(random.below(bytes.length + 1)));
    case 3:
      return concat(bytes.subarray(0, at), random.bytes(random.below(40)), bytes.subarray(at));
    case 4: {
      const changed = bytes.slice();
      if (at + 4 <= bytes.length) changed.set(u32(random.pick(INTERESTING)), at);
      return changed;
    }
    default:
      return bytes;
  }
}

function conversation(random: Random): Uint8Array {
  const parts: Uint8Array[] = [];
  if (random.chance(0.9)) parts.push(u32(random.chance(0.9) ? 3 : random.below(5)));
  for (let i = random.below(6); i >= 0; i--) {
    const [, sent] = random.pick(CASES);
    parts.push(mutate(random, random.chance(0.8) ? sent.subarray(4) : sent));
    if (random.chance(0.2)) {
      const code = random.chance(0.9) ? random.below(13) : random.u32();
      const length = random.chance(0.2) ? random.pick(INTERESTING) : undefined;
      parts.push(option(code, random.bytes(random.below(64)), length));
    }
  }
  return concat(...parts);
}

/** Feeds in pieces and takes output in pieces, both of random sizes. */
function converse(random: Random, handshake: Handshake, sent: Uint8Array): Uint8Array {
  const output: Uint8Array[] = [];
  const pieceBytes = sent.length < 1000 ? random.pick([1, 3, 16, 100, 4096]) : 4096;
  for (let at = 0, idle = 0; idle < 100; ) {
    const piece = sent.subarray(at, at + random.below(pieceBytes + 1));
    const used = handshake.feed(piece);
    if (used > piece.length) throw new Error("feed() uses what it gets");
    if (handshake.outputBytes > OUTPUT_BYTES_MAX) throw new Error("output is bounded");
    at += used;
    const { outputBytes } = handshake;
    const target = new Uint8Array(random.chance(0.7) ? outputBytes : random.below(100));
    const taken = handshake.copyOutput(target);
    handshake.advanceOutput(taken);
    output.push(target.subarray(0, taken));
    idle = used === 0 && taken === 0 ? idle + 1 : 0;
    if (handshake.state !== "haggling" && handshake.outputBytes === 0) break;
    if (at === sent.length && handshake.outputBytes === 0 && piece.length === 0) idle += 10;
  }
  return concat(...output);
}

test("Handshake survives whatever clients send", () => {
  const seed = randomSeed();
  const cases = fuzzCases(3000);
  for (let index = 0; index < cases; index++) {
    const random = new Random(seed + index);
    const handshake = new Handshake(offered(random));
    const output = converse(random, handshake, conversation(random));
    const { used } = parseOptionReplies(output.subarray(NBD_GREETING_BYTES));
    const rest = output.length - NBD_GREETING_BYTES - used;
    // Only the answer to NBD_OPT_EXPORT_NAME is no option reply.
    const known = [
      0,
      NBD_EXPORT_NAME_REPLY_BYTES,
      NBD_EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_NAME_ZEROES_BYTES,
    ];
    expect({ index, known: known.includes(rest) }).toEqual({ index, known: true });
    expect(handshake.session !== null).toBe(handshake.state === "transmission");
  }
});
