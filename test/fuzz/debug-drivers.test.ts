/** What blkdebug and blklogwrites read from files, damaged at random: an error or a node. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseConfig } from "../../src/block/drivers/blkdebug/config.ts";
import { EVENTS, IO_TYPES } from "../../src/block/drivers/blkdebug/rules.ts";
import { blklogwrites } from "../../src/block/drivers/blklogwrites/index.ts";
import { file } from "../../src/block/drivers/file/index.ts";
import { OutportError } from "../../src/util/error.ts";
import { openContext, Payload } from "../support/block.ts";
import { FakeNode } from "../support/fake-node.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

const random = new Random(randomSeed());
const reactor = makeReactor("epoll");
const directory = mkdtempSync(join(tmpdir(), "outport-fuzz-"));
afterAll(() => rmSync(directory, { recursive: true }));

const CONFIG = `[inject-error]
event = "read_aio"
errno = "5"
once = "on"
[set-state]
event = "write_aio"
new_state = "2"
`;

/** `undefined` for an OutportError; every other error is thrown. */
async function attempt<T>(task: () => T | Promise<T>): Promise<T | undefined> {
  try {
    return await task();
  } catch (error) {
    if (error instanceof OutportError) return undefined;
    throw error;
  }
}

function damaged(bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice();
  for (let count = 1 + random.below(4); count > 0; count--) {
    copy[random.below(copy.length)] = random.pick([0, 1, 10, 34, 91, 93, 255, random.below(256)]);
  }
  return copy.subarray(0, random.chance(0.2) ? random.below(copy.length + 1) : copy.length);
}

test("a damaged configuration is refused or gives rules that are whole", async () => {
  const whole = new TextEncoder().encode(CONFIG);
  let accepted = 0;
  for (let round = fuzzCases(3000); round > 0; round--) {
    const text = new TextDecoder().decode(damaged(whole));
    const config = await attempt(() => parseConfig(text));
    if (config === undefined) continue;
    accepted++;
    for (const rule of config.injectErrors) {
      expect(EVENTS).toContain(rule.event);
      if (rule.iotype !== undefined) expect(IO_TYPES).toContain(rule.iotype);
      for (const value of [rule.errno ?? 0, rule.state ?? 0, rule.sector ?? 0]) {
        expect(Number.isSafeInteger(value)).toBe(true);
      }
    }
    for (const rule of config.setStates) expect(Number.isSafeInteger(rule.new_state)).toBe(true);
  }
  expect(accepted).toBeGreaterThan(0);
});

test("a damaged log is refused or goes on", async () => {
  const path = join(directory, "log.raw");
  const whole = new Uint8Array(4096);
  const view = new DataView(whole.buffer);
  view.setBigUint64(0, 0x6a736677736872n, true);
  view.setBigUint64(8, 1n, true);
  view.setBigUint64(16, 3n, true);
  view.setUint32(24, 512, true);
  for (const at of [512, 1536, 2560]) view.setBigUint64(at + 8, 1n, true);
  const payload = new Payload(reactor, 65_536);
  let accepted = 0;
  for (let round = fuzzCases(300); round > 0; round--) {
    writeFileSync(path, damaged(whole));
    await runOn(reactor, async () => {
      const options = { filename: path, locking: "off" };
      const log = await file.open(openContext(reactor, { nodeName: "log", options }));
      const children = { file: new FakeNode(reactor, 131_072), log };
      const context = openContext(reactor, { options: { "log-append": true }, children });
      const node = await attempt(() => blklogwrites.open(context));
      if (node !== undefined) {
        accepted++;
        const bytes = node.limits.requestAlignment;
        if (bytes <= 65_536) {
          // A log that claims to end beyond what a file can be has no room.
          expect(await node.write(0, bytes, payload.address, 0)).toBeLessThanOrEqual(0);
          expect(await node.flush()).toBeLessThanOrEqual(0);
        }
      }
      await log.close();
    });
  }
  expect(accepted).toBeGreaterThan(0);
});
