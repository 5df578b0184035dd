/**
 * Incremental backups from end to end, as oVirt and virtnbdbackup make them: checkpoints are
 * persistent bitmaps, dirty ranges are pulled over NBD, and what is restored is the disk.
 */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { copyFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import { assertSameBytes } from "../support/images.ts";
import { Random, randomSeed } from "../support/random.ts";
import { act, BackupScene, complaints, makeIncrement, restored } from "./backup-scene.ts";

setDefaultTimeout(180_000);

let scene: BackupScene;
let random: Random;

beforeEach(async () => {
  scene = await BackupScene.make();
  random = new Random(randomSeed());
  await scene.guestWrites(random, 30);
});

afterEach(() => scene[Symbol.asyncDispose]());

const checkpoint = (index: number): string => `checkpoint-${index}`;

/** A checkpoint from now on; the one before it records no more. */
async function beginCheckpoint(index: number): Promise<void> {
  const add = act("add", { name: checkpoint(index), persistent: true });
  const end = act("disable", { name: checkpoint(index - 1) });
  await scene.transaction(...(index === 0 ? [add] : [add, end]));
}

/** All that was written since checkpoint `from`, up to checkpoint `to`, in a bitmap of its own. */
async function mergeCheckpoints(name: string, from: number, to: number): Promise<void> {
  const bitmaps = Array.from({ length: to - from }, (_, i) => checkpoint(from + i));
  await scene.transaction(
    act("add", { name, disabled: true }),
    act("merge", { target: name, bitmaps }),
  );
}

/** An incremental backup since the last checkpoint, with a new one. Returns the bytes pulled. */
async function increment(index: number, path: string, format: "raw" | "qcow2"): Promise<number> {
  await beginCheckpoint(index);
  await mergeCheckpoints("pull", index - 1, index);
  const bytes = await scene.pullDirty("pull", path, format);
  await scene.execute("block-dirty-bitmap-remove", { node: "disk", name: "pull" });
  return bytes;
}

async function restart(): Promise<void> {
  await scene.stop();
  expect(await complaints(scene.disk)).toBe("");
  await scene.start();
}

describe("an incremental backup", () => {
  test("into a raw image follows the disk through rounds and restarts", async () => {
    const backup = scene.folder.file("backup.raw");
    await beginCheckpoint(0);
    await scene.pullAll(backup);
    assertSameBytes(await restored(backup, "raw"), scene.model, "the full backup");
    for (let round = 1; round <= 4; round++) {
      await scene.guestWrites(random, 12);
      if (round % 2 === 0) await restart();
      await scene.guestWrites(random, 4);
      const bytes = await increment(round, backup, "raw");
      expect(bytes).toBeGreaterThan(0);
      expect(bytes).toBeLessThan(scene.model.length);
      assertSameBytes(await restored(backup, "raw"), scene.model, `round ${round}`);
    }
    const bitmaps = (await scene.bitmaps()).sort((a, b) => a.name.localeCompare(b.name));
    expect(bitmaps).toMatchObject([
      ...[0, 1, 2, 3].map((index) => ({ name: checkpoint(index), recording: false })),
      { name: checkpoint(4), persistent: true, recording: true },
    ]);
  });

  test("as a chain of qcow2 increments restores the disk of every round", async () => {
    const paths = [scene.folder.file("full.raw")];
    const contents = [Buffer.from(scene.model)];
    await beginCheckpoint(0);
    await scene.pullAll(paths[0]!);
    for (let round = 1; round <= 4; round++) {
      await scene.guestWrites(random, 10);
      if (round === 3) await restart();
      const path = scene.folder.file(`increment-${round}.qcow2`);
      await makeIncrement(path, paths.at(-1)!, round === 1 ? "raw" : "qcow2");
      await increment(round, path, "qcow2");
      paths.push(path);
      contents.push(Buffer.from(scene.model));
    }
    for (const [round, path] of paths.entries()) {
      const content = await restored(path, round === 0 ? "raw" : "qcow2");
      assertSameBytes(content, contents[round]!, `round ${round}`);
    }
  });

  test("since any earlier checkpoint takes the checkpoints between together", async () => {
    const copies: string[] = [];
    for (let round = 0; round < 4; round++) {
      await beginCheckpoint(round);
      copies.push(scene.folder.file(`full-${round}.raw`));
      await scene.pullAll(copies[round]!);
      await scene.guestWrites(random, 8);
      if (round === 1) await restart();
    }
    for (const [from, path] of copies.entries()) {
      const backup = `${path}.now`;
      await copyFile(path, backup);
      await mergeCheckpoints("since", from, 4);
      await scene.pullDirty("since", backup, "raw");
      await scene.execute("block-dirty-bitmap-remove", { node: "disk", name: "since" });
      assertSameBytes(await restored(backup, "raw"), scene.model, `since checkpoint ${from}`);
    }
  });

  test("goes on when a checkpoint in the middle is deleted and its marks are kept", async () => {
    const backup = scene.folder.file("backup.raw");
    await beginCheckpoint(0);
    await scene.pullAll(backup);
    for (const round of [1, 2]) {
      await scene.guestWrites(random, 8);
      await beginCheckpoint(round);
    }
    await scene.transaction(
      act("merge", { target: checkpoint(0), bitmaps: [checkpoint(1)] }),
      act("remove", { name: checkpoint(1) }),
    );
    await restart();
    await scene.pullDirty(checkpoint(0), backup, "raw");
    assertSameBytes(await restored(backup, "raw"), scene.model);
  });

  test("must begin anew after a crash, which no checkpoint survives unnoticed", async () => {
    const backup = scene.folder.file("backup.raw");
    await beginCheckpoint(0);
    await scene.pullAll(backup);
    await restart();
    await scene.guestWrites(random, 8);
    await scene.kill();
    // A crash may leave clusters that nobody uses, and nothing worse.
    await run("qemu-img", ["check", "-q", "-f", "qcow2", "-r", "leaks", scene.disk]);
    expect(await complaints(scene.disk)).toBe("");
    await scene.start();
    const [lost] = await scene.bitmaps();
    expect(lost).toMatchObject({ name: checkpoint(0), inconsistent: true, recording: false });
    const exporting = scene.pullDirty(checkpoint(0), backup, "raw");
    await expect(exporting).rejects.toThrow("is inconsistent and cannot be used");
    await scene.execute("block-dirty-bitmap-remove", { node: "disk", name: checkpoint(0) });
    await beginCheckpoint(0);
    await scene.pullAll(backup);
    await scene.guestWrites(random, 8);
    await restart();
    await increment(1, backup, "raw");
    assertSameBytes(await restored(backup, "raw"), scene.model);
  });
});
