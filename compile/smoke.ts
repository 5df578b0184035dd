/**
 * Proves that a built outport works wherever it is called: `npm run smoke`. OUTPORT_COMMAND names
 * another command than dist/outport, with full paths. Start-up times are printed, not judged.
 */

import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { VERSION } from "../src/util/version.ts";
import {
  patternImage,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../test/support/images.ts";
import { NbdClient } from "../test/support/nbd-client.ts";
import { runDaemon, startDaemon } from "../test/support/process.ts";

const IMAGE_BYTES = 1024 * 1024;

/** The working directory of every daemon here, with files that a runtime might read. */
let directory: TemporaryDirectory;
let image: Buffer;

beforeAll(async () => {
  directory = await temporaryDirectory();
  const marker = JSON.stringify(directory.file("preloaded"));
  await writeFile(directory.file("preload.js"), `require("fs").writeFileSync(${marker}, "");`);
  await writeFile(directory.file("bunfig.toml"), 'preload = ["./preload.js"]\n');
  await writeFile(directory.file(".env"), "OUTPORT_IO_ENGINE=no-such-engine\n");
  image = await patternImage(directory.file("disk.raw"), IMAGE_BYTES);
});

afterAll(() => directory[Symbol.asyncDispose]());

const here = () => ({ cwd: directory.path });

/** One export, served on the unix socket "nbd" of the directory. */
const serving = () => [
  "--blockdev=driver=file,node-name=disk,filename=disk.raw",
  `--nbd-server=addr.type=unix,addr.path=${directory.file("nbd")}`,
  "--export=type=nbd,id=e0,node-name=disk,name=disk,writable=on",
];

const leftBehind = () =>
  ["nbd", "qmp.sock", "daemon.pid"].filter((name) => existsSync(join(directory.path, name)));

test("--version names the version", async () => {
  const begin = performance.now();
  const { exit, stdout } = await runDaemon(["--version"], here());
  console.log(`--version took ${(performance.now() - begin).toFixed(1)} ms`);
  expect(stdout).toStartWith(`outport version ${VERSION}`);
  expect(exit).toBe(0);
});

test("--help lists the options", async () => {
  const { exit, stdout } = await runDaemon(["--help"], here());
  expect(stdout).toContain("--blockdev");
  expect(stdout).toContain("--nbd-server");
  expect(exit).toBe(0);
});

test("an option that fails is named and exits 1", async () => {
  const { exit, stderr } = await runDaemon(["--export", "type=nbd,id=e,node-name=no"], here());
  expect(stderr).toStartWith("outport: --export");
  expect(exit).toBe(1);
});

test("serves a disk, and QMP quit leaves nothing behind", async () => {
  const begin = performance.now();
  const { daemon, qmp } = await startDaemon(directory.path, serving(), here());
  console.log(`serving after ${(performance.now() - begin).toFixed(1)} ms`);
  const client = await NbdClient.open({ path: directory.file("nbd") }, { exportName: "disk" });
  expect(client.facts.bytes).toBe(IMAGE_BYTES);
  const data = await client.read(IMAGE_BYTES / 2, 4096);
  expect(image.compare(data, 0, 4096, IMAGE_BYTES / 2, IMAGE_BYTES / 2 + 4096)).toBe(0);
  await client.disconnect();
  await qmp.execute("quit");
  qmp.close();
  expect(await daemon.exitSoon()).toBe(0);
  expect(leftBehind()).toEqual([]);
});

test("SIGTERM with a client connected leaves nothing behind", async () => {
  const { daemon, qmp } = await startDaemon(directory.path, serving(), here());
  const client = await NbdClient.open({ path: directory.file("nbd") }, { exportName: "disk" });
  daemon.signal("SIGTERM");
  expect(await daemon.exitSoon()).toBe(0);
  expect(leftBehind()).toEqual([]);
  client.close();
  qmp.close();
});

test("reads no .env and no bunfig.toml of the working directory", async () => {
  // Were .env read, no daemon above would have started: this is what its line does.
  const env = { OUTPORT_IO_ENGINE: "no-such-engine" };
  const { exit } = await runDaemon(serving(), { ...here(), env });
  expect(exit).toBe(1);
  expect(existsSync(directory.file("preloaded"))).toBe(false);
});

test("is not turned into something else by the environment", async () => {
  const preload = `--preload ${directory.file("preload.js")}`;
  const inspect = "ws://127.0.0.1:0/x?wait=1";
  const env = { BUN_BE_BUN: "1", BUN_OPTIONS: preload, BUN_INSPECT: inspect };
  const { exit, stdout } = await runDaemon(["--version"], { ...here(), env });
  expect(stdout).toStartWith(`outport version ${VERSION}`);
  expect(exit).toBe(0);
  expect(existsSync(directory.file("preloaded"))).toBe(false);
});
