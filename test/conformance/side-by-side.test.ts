/**
 * outport beside qemu-storage-daemon: the same requests to both. What outport answers must be what
 * the reference release answered (recorded.json); the installed daemon shows how much of that
 * other releases answer, too. Each other difference is in the scenes, with its reason.
 */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { requireClient } from "../support/clients.ts";
import { COMMAND } from "../support/process.ts";
import { commandLines, scenes } from "./side-by-side/index.ts";
import { type Printed, play, print, type Transcript } from "./side-by-side/play.ts";
import { readRecorded } from "./side-by-side/recorded.ts";

setDefaultTimeout(180_000);

const recorded = readRecorded();
const installed = (process.env.QSD_COMMAND ?? requireClient("qemu-storage-daemon")).split(" ");

interface Difference {
  readonly what: string;
  readonly ours: unknown;
  readonly theirs: unknown;
}

/** What is wrong with one answer: other than the reference without a reason, or the reverse. */
function judge(what: string, ours: unknown, theirs: unknown, reason?: string): Difference[] {
  const isEqual = Bun.deepEquals(ours, theirs);
  if (isEqual && reason !== undefined) return [{ what: `${what}: no difference`, ours, theirs }];
  return isEqual || reason !== undefined ? [] : [{ what, ours, theirs }];
}

/** How many answers of `theirs` are the reference's too; the rest is what releases changed. */
function countUnchanged(theirs: Transcript, reference: Transcript): number {
  const same = theirs.replies.filter((reply, at) => Bun.deepEquals(reply, reference.replies[at]));
  return same.length;
}

describe("QMP", () => {
  let unchanged = 0;
  for (const scene of scenes) {
    test(scene.name, async () => {
      const reference = recorded.scenes[scene.name] as Transcript;
      const ours = await play(COMMAND, scene);
      const end = ({ events, exit }: Transcript) => ({ events, exit });
      expect([
        ...scene.steps.flatMap(({ text, differs }, at) =>
          judge(text, ours.replies[at], reference.replies[at], differs),
        ),
        ...judge("the end", end(ours), end(reference), scene.differs),
      ]).toEqual([]);
      const theirs = await play(installed, scene);
      unchanged += countUnchanged(theirs, reference);
    });
  }

  test("of the recorded answers most are also the installed daemon's", () => {
    const all = scenes.reduce((sum, { steps }) => sum + steps.length, 0);
    expect(all).toBeGreaterThanOrEqual(150);
    expect(unchanged).toBeGreaterThan(all / 2);
  });
});

describe("command line", () => {
  let unchanged = 0;
  for (const line of commandLines) {
    const name = line.args.join(" ");
    test(name === "" ? "(no arguments)" : name, async () => {
      const reference = recorded.commandLines[name] as Printed;
      const ours = await print(COMMAND, line);
      expect(judge("the outcome", ours, reference, line.differs)).toEqual([]);
      if (Bun.deepEquals(await print(installed, line), reference)) unchanged++;
    });
  }

  test("of the recorded outcomes most are also the installed daemon's", () => {
    expect(commandLines.length).toBeGreaterThanOrEqual(60);
    expect(unchanged).toBeGreaterThan(commandLines.length / 2);
  });
});
