/** Files and FIFOs as streams. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } from "../../../src/abi/linux.ts";
import type { Stream } from "../../../src/runtime/driver.ts";
import { driver } from "../../support/driver.ts";

const { files } = driver;
const bytesOf = (text: string) => new TextEncoder().encode(text);

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "files-"));
});
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

async function until(condition: () => boolean): Promise<void> {
  for (let round = 0; !condition() && round < 10_000; round++) {
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  expect(condition()).toBe(true);
}

function received(stream: Stream): () => string {
  let text = "";
  stream.onData = (bytes) => {
    text += new TextDecoder().decode(bytes);
  };
  return () => text;
}

describe("files", () => {
  test("stream() reads one file to its end and writes another in order", async () => {
    writeFileSync(at("in"), "input");
    writeFileSync(at("out"), "before ");
    const input = files.open(at("in"), O_RDONLY);
    const stream = files.stream(input, files.open(at("out"), O_WRONLY | O_APPEND));
    const text = received(stream);
    let ended = 0;
    stream.onEnd = () => {
      ended++;
    };
    stream.resume();
    await until(() => ended === 1);
    expect(text()).toBe("input");
    for (const word of ["a", "", "b", "c"]) stream.write(bytesOf(word));
    expect(stream.pendingBytes).toBe(3);
    let closed = 0;
    stream.onClose = () => {
      closed++;
    };
    stream.end();
    await until(() => closed === 1);
    expect(readFileSync(at("out"), "utf8")).toBe("before abc");
    stream.end();
    stream.destroy();
    stream.write(bytesOf("late"));
    expect([ended, closed]).toEqual([1, 1]);
  });

  test("stream() speaks over a FIFO, and flows only when it is resumed", async () => {
    execFileSync("mkfifo", [at("fifo")]);
    const fds = readdirSync("/proc/self/fd").length;
    const fd = files.open(at("fifo"), O_RDWR);
    const stream = files.stream(fd, fd);
    const text = received(stream);
    stream.write(bytesOf("round"));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(text()).toBe("");
    stream.resume();
    await until(() => text() === "round");
    stream.pause();
    stream.write(bytesOf(" trip"));
    await new Promise((resolve) => setTimeout(resolve, 80));
    stream.resume();
    await until(() => text() === "round trip");
    stream.destroy();
    await until(() => readdirSync("/proc/self/fd").length <= fds);
  });

  test("open() fails with a code", () => {
    let code: unknown;
    try {
      files.open(at("nowhere/file"), O_WRONLY | O_CREAT);
    } catch (error) {
      code = (error as { code?: unknown }).code;
    }
    expect(code).toBe("ENOENT");
  });

  test("a stream whose output fails is closed", async () => {
    const stream = files.stream(undefined, files.open("/dev/full", O_WRONLY));
    let closed = 0;
    stream.onClose = () => {
      closed++;
    };
    stream.write(bytesOf("lost"));
    await until(() => closed === 1);
    expect(stream.pendingBytes).toBe(0);
  });
});
