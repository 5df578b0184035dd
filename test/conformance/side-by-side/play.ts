/**
 * Plays a scene or a command line with one daemon and writes down what it answers, without what
 * must differ: times, the program's name and version, generated names.
 */

import { spawn } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { patternImage, sparseImage, temporaryDirectory } from "../../support/images.ts";
import { Qmp } from "../../support/qmp.ts";
import type { CommandLine, Scene } from "./script.ts";

/** What one daemon answered. */
export interface Transcript {
  /** Per step, the replies as JSON texts; the greeting belongs to nobody. */
  readonly replies: readonly (readonly string[])[];
  /** As JSON texts; their order against replies is not defined, so they are sorted. */
  readonly events: readonly string[];
  readonly exit: number | string;
}

export interface Printed {
  readonly exit: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

const ANSWER_MS_MAX = 60_000;
const SYNC = "side-by-side";

/** Makes the files that scenes name, relative to the daemon's working directory. */
export async function furnish(file: (name: string) => string): Promise<void> {
  await patternImage(file("disk.raw"), 1024 * 1024);
  await patternImage(file("other.raw"), 1024 * 1024, 2);
  await patternImage(file("odd.raw"), 1000);
  await sparseImage(file("empty.raw"), 0);
  await mkdir(file("directory"));
  await writeFile(file("secret.txt"), "from a file");
  await writeFile(file("rules.cfg"), '[inject-error]\nevent = "nope"\n');
  await writeFile(file("users.json"), '{"policy":"deny","rules":[]}');
}

type Message = Record<string, unknown>;

/** `command`: the program and its first arguments. */
export async function play(command: readonly string[], scene: Scene): Promise<Transcript> {
  await using directory = await temporaryDirectory();
  await furnish(directory.file);
  const args = [...(scene.args ?? []), "--chardev", "stdio,id=qmp", "--monitor", "qmp"];
  const child = spawn(command[0] as string, [...command.slice(1), ...args], {
    cwd: directory.path,
    stdio: ["pipe", "pipe", "ignore"],
  });
  const ended = new Promise<number | string>((resolve) => {
    child.on("error", (error) => resolve(String(error)));
    child.on("close", (code, signal) => resolve(code ?? signal ?? "unknown"));
  });
  const names = new Map<string, string>();
  const conversation = new Conversation(
    new Qmp(Readable.from(repliesOf(child.stdout)), child.stdin),
    names,
  );
  const timer = setTimeout(() => child.kill("SIGKILL"), ANSWER_MS_MAX);
  try {
    const replies: string[][] = [];
    if (scene.greeting !== true) await conversation.exchange('{"execute":"qmp_capabilities"}');
    for (const { text } of scene.steps) replies.push(await conversation.exchange(text));
    await conversation.exchange('{"execute":"quit"}');
    const exit = await ended;
    return { replies, events: conversation.events.sort(), exit };
  } finally {
    clearTimeout(timer);
    child.kill("SIGKILL");
  }
}

/** Lines without what QSD says among them while it makes an image. */
async function* repliesOf(stdout: Readable): AsyncGenerator<string> {
  for await (const line of createInterface({ input: stdout })) {
    if (!line.startsWith("Formatting '")) yield `${line}\n`;
  }
}

class Conversation {
  readonly events: string[] = [];
  #qmp: Qmp;
  #names: Map<string, string>;

  constructor(qmp: Qmp, names: Map<string, string>) {
    this.#qmp = qmp;
    this.#names = names;
  }

  /** Sends `text` and returns the replies to it: what comes before that to one more command. */
  async exchange(text: string): Promise<string[]> {
    const replies: string[] = [];
    this.#qmp.sendText(text);
    this.#qmp.send({ execute: "query-version", id: SYNC });
    for (;;) {
      const message = await this.#qmp.take(() => true).catch(() => undefined);
      if (message === undefined) return [...replies, "the monitor is closed"];
      if (message.id === SYNC) return replies;
      if ("QMP" in message) continue;
      const shown = show(message, this.#names);
      if ("event" in message) this.events.push(shown);
      else replies.push(shown);
    }
  }
}

/** With members in alphabetic order. */
function show(message: Message, names: Map<string, string>): string {
  return JSON.stringify(plain(message, names));
}

function plain(value: unknown, names: Map<string, string>): unknown {
  if (Array.isArray(value)) return inOrder(value.map((item) => plain(item, names)));
  if (typeof value === "string") return plainText(value, names);
  if (value === null || typeof value !== "object") return value;
  const members = Object.entries(value)
    .filter(([key]) => key !== "timestamp")
    .sort(([one], [other]) => (one < other ? -1 : 1));
  return Object.fromEntries(members.map(([key, member]) => [key, plain(member, names)]));
}

/** What has a name or label comes out of a hash table, in no order. */
function inOrder(items: unknown[]): unknown[] {
  const isNamed = (item: unknown) =>
    Object.hasOwn(Object(item), "name") || Object.hasOwn(Object(item), "label");
  if (!items.every(isNamed)) return items;
  const texts = items.map((item) => JSON.stringify(item)).sort();
  return texts.map((text) => JSON.parse(text) as unknown);
}

/** Generated node names, by the order of their appearance; options in a file name, by name. */
function plainText(text: string, names: Map<string, string>): string {
  if (text.startsWith("json:{")) {
    return `json:${JSON.stringify(plain(JSON.parse(text.slice("json:".length)), names))}`;
  }
  return text.replace(/#block[0-9]+/g, (name) => {
    const known = names.get(name) ?? `#block<${names.size}>`;
    names.set(name, known);
    return known;
  });
}

/** Runs a command line to its end. */
export async function print(command: readonly string[], line: CommandLine): Promise<Printed> {
  await using directory = await temporaryDirectory();
  await furnish(directory.file);
  const child = spawn(command[0] as string, [...command.slice(1), ...line.args], {
    cwd: directory.path,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), ANSWER_MS_MAX);
  const exit = await new Promise<number | string>((resolve) => {
    child.on("error", (error) => resolve(String(error)));
    child.on("close", (code, signal) => resolve(code ?? signal ?? "unknown"));
  });
  clearTimeout(timer);
  const nameless = (text: string) => text.replace(/^(\S*qemu-storage-daemon|outport):/gm, "NAME:");
  return { exit, stdout: nameless(stdout), stderr: nameless(stderr) };
}
