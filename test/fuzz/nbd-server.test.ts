/**
 * Garbage at every stage of connections to the running program, while a good client goes on
 * checking its data. Afterwards nothing of the bad ones is left.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  NBD_CMD_DISC,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_STRUCTURED_REPLY,
} from "../../src/abi/nbd.ts";
import { type Scene, serve } from "../conformance/scene.ts";
import { ByteStream } from "../support/byte-stream.ts";
import { assertSameBytes, MiB } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { concat, infoData, option, request, u32 } from "../support/nbd-wire.ts";
import { sleep } from "../support/process.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

setDefaultTimeout(180_000);

/** Writes of bad clients go beyond it; the good one reads below. */
const GOOD_BYTES = 2 * MiB;
const EXPORT_BYTES = 4 * MiB;
/** Between a bad client's last byte and its end. */
const LINGER_MS_MAX = 20;
const MEMORY_GROWTH_KIB_MAX = 32 * 1024;

function hello(random: Random): { extended: boolean; bytes: Uint8Array } {
  const mode = random.below(3);
  const agreed = [[], [option(NBD_OPT_STRUCTURED_REPLY)], [option(NBD_OPT_EXTENDED_HEADERS)]];
  const bytes = concat(u32(3), ...agreed[mode]!, option(NBD_OPT_GO, infoData("disk")));
  return { extended: mode === 2, bytes };
}

/** Any request but one that changes what the good client reads. */
function anyRequest(random: Random, extended: boolean): Uint8Array {
  const type = random.chance(0.9) ? random.below(9) : random.below(65536);
  const changes = type === 1 || type === 4 || type === 6;
  const low = changes ? GOOD_BYTES : 0;
  const far = [2 ** 53, 2n ** 63n, 2n ** 64n - 1n, EXPORT_BYTES, EXPORT_BYTES - 1];
  const offset = random.chance(0.2) ? random.pick(far) : low + random.below(EXPORT_BYTES - low);
  const odd = [0, 1, 2 ** 25, 2 ** 25 + 1, 2 ** 32 - 1];
  const length = random.chance(0.2) ? random.pick(odd) : random.below(65536);
  const flags = random.chance(0.5) ? 0 : random.below(64);
  const header = request({ type, flags, cookie: random.u32(), offset, length }, extended);
  const carries = type === 1 || (extended && (flags & 32) !== 0);
  const payload = carries ? Math.min(length, 65536) : 0;
  return concat(header, random.bytes(random.chance(0.7) ? payload : random.below(payload + 1)));
}

/** One client that does its worst at one stage, then leaves in one way or another. */
async function misbehave(random: Random, socket: string): Promise<void> {
  const stream = await ByteStream.connect({ path: socket });
  const { extended, bytes } = hello(random);
  const parts: Uint8Array[] = [];
  switch (random.below(4)) {
    case 0:
      parts.push(random.bytes(random.below(200)));
      break;
    case 1:
      parts.push(bytes.subarray(0, random.below(bytes.length)), random.bytes(random.below(100)));
      break;
    case 2:
      parts.push(bytes, random.bytes(random.below(500)));
      break;
    default:
      parts.push(bytes);
      for (let i = random.below(20); i >= 0; i--) parts.push(anyRequest(random, extended));
      if (random.chance(0.3)) parts.push(request({ type: NBD_CMD_DISC }, extended));
  }
  if (random.chance(0.3)) stream.pause();
  const sent = stream.send(...parts);
  await Promise.race([sent, sleep(LINGER_MS_MAX)]);
  if (random.chance(0.5)) await sleep(random.below(LINGER_MS_MAX));
  if (random.chance(0.2)) stream.end();
  stream.destroy();
}

/** Reads and compares until told to stop; how many times it did. */
async function checkData(disk: Scene, random: Random, more: () => boolean): Promise<number> {
  const client = await NbdClient.open({ path: disk.socket }, { exportName: "disk" });
  let reads = 0;
  for (; more(); reads++) {
    const offset = random.below(GOOD_BYTES - 65536);
    const bytes = 1 + random.below(65536);
    const expected = disk.content.subarray(offset, offset + bytes);
    assertSameBytes(await client.read(offset, bytes), expected);
  }
  await client.disconnect();
  return reads;
}

test("the NBD server survives clients that send garbage", async () => {
  const seed = randomSeed();
  const cases = fuzzCases(400);
  await using disk = await serve({ bytes: EXPORT_BYTES, server: "max-connections=0" });
  const atOnce = 8;
  const storm = async (first: number, last: number) => {
    for (let index = first; index < last; index += atOnce) {
      const some = Array.from({ length: atOnce }, (_, i) => new Random(seed + index + i));
      await Promise.all(some.map((random) => misbehave(random, disk.socket)));
    }
  };
  // The first ones make the program reach its usual size.
  await storm(0, cases / 4);
  await sleep(200);
  const fdsBefore = disk.daemon.fdCount();
  const memoryBefore = disk.daemon.residentKiB();
  let over = false;
  const checked = checkData(disk, new Random(seed), () => !over);
  await storm(cases / 4, cases);
  over = true;
  expect(await checked).toBeGreaterThan(0);
  for (let i = 0; i < 100 && disk.daemon.fdCount() > fdsBefore; i++) await sleep(50);
  expect(disk.daemon.fdCount()).toBeLessThanOrEqual(fdsBefore);
  expect(disk.daemon.residentKiB() - memoryBefore).toBeLessThan(MEMORY_GROWTH_KIB_MAX);
});
