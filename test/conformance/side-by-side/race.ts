/**
 * Random commands from several monitors at once against outport alone, while NBD clients come,
 * read, write and leave: each command is answered, and in the end nothing is left.
 */

import { existsSync, readdirSync, readlinkSync } from "node:fs";
import { patternImage, temporaryDirectory } from "../../support/images.ts";
import { NbdClient } from "../../support/nbd-client.ts";
import type { Daemon } from "../../support/process.ts";
import { type RunningDaemon, sleep, startDaemon } from "../../support/process.ts";
import { Qmp } from "../../support/qmp.ts";
import { Random } from "../../support/random.ts";
import { Drawing, type SchemaEntity } from "./draw.ts";
import { furnish } from "./play.ts";

const MONITORS = 4;
const CLIENTS = 4;
const STEPS = 250;
const ANSWER_MS_MAX = 5_000;
/** A scene of its own stays as it is: the names are none of those that are drawn. */
const ARGS = [
  ...["--object", "iothread,id=io", "--blockdev", "file,node-name=own,filename=own.raw"],
  ...[
    "--blockdev",
    "raw,node-name=own-raw,file=own",
    "--nbd-server",
    "addr.type=unix,addr.path=nbd.sock",
  ],
  ...["--export", "nbd,id=own,node-name=own-raw,name=own,writable=on"],
];
const SOCKETS = ["nbd.sock", "two.sock"];
const EXPORTS = ["own", "own", "a", "b", "c", "d", "f", "r", "t", "n", ""];

/** Requests without an answer, the oldest first. */
const pending = new Set<string>();

/** Throws when a reply is late or tells of an error inside. */
async function exchange(qmp: Qmp, text: string, id: string): Promise<Record<string, unknown>> {
  const request = `${JSON.stringify({ ...(JSON.parse(text) as object), id })}\n`;
  pending.add(request);
  qmp.sendText(request);
  const late = sleep(ANSWER_MS_MAX, undefined, { ref: false });
  const reply = await Promise.race([qmp.take((message) => message.id === id), late]);
  if (reply === undefined) {
    throw new Error(`no answer in ${ANSWER_MS_MAX} ms:\n${[...pending].join("")}`);
  }
  pending.delete(request);
  if (JSON.stringify(reply).includes("Internal error")) {
    throw new Error(`${request}${JSON.stringify(reply)}`);
  }
  return reply;
}

async function ask<T>(qmp: Qmp, execute: string, args: object = {}): Promise<T> {
  const reply = await exchange(qmp, JSON.stringify({ execute, arguments: args }), "ask");
  return reply.return as T;
}

/** The first monitor and more, made over it. */
async function openMonitors({ qmp }: RunningDaemon, file: (name: string) => string) {
  const monitors = [qmp];
  for (let n = 1; n < MONITORS; n++) {
    const addr = { type: "unix", data: { path: file(`monitor-${n}`) } };
    await qmp.execute("chardev-add", {
      id: `chardev-${n}`,
      backend: { type: "socket", data: { addr, wait: false } },
    });
    const ids = { id: `monitor-${n}`, chardev: `chardev-${n}` };
    await qmp.execute("object-add", { "qom-type": "monitor-qmp", ...ids });
    monitors.push(await Qmp.connect(file(`monitor-${n}`)));
  }
  return monitors;
}

/** Connects, does a few requests and leaves in any manner, until `isOver`. Nothing need succeed. */
async function disturb(file: (name: string) => string, random: Random, isOver: () => boolean) {
  const bytes = new Uint8Array(4096);
  while (!isOver()) {
    const path = file(random.pick(SOCKETS));
    let client: NbdClient | undefined;
    try {
      const exportName = random.pick(EXPORTS);
      const mode = random.pick(["simple", "structured", "extended"] as const);
      client = await within(200, NbdClient.open({ path }, { exportName, mode }));
      for (let count = random.below(20); count > 0; count--) {
        const offset = random.below(32) * 4096;
        const requests = [
          client.read(offset, 4096),
          ...(random.chance(0.5) ? [client.write(offset, bytes)] : [client.flush()]),
        ];
        const done = Promise.all(requests.map((request) => request.catch(() => {})));
        if (random.chance(0.8)) await within(200, done);
      }
      if (random.chance(0.5)) await within(200, client.disconnect());
    } catch {
      await sleep(1);
    } finally {
      client?.close();
    }
  }
}

async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  const late = sleep(ms, undefined, { ref: false }).then(() => {
    throw new Error("late");
  });
  return await Promise.race([promise, late]);
}

type Named = Record<string, string>;

/** Removes all that is not the scene's own; more than once, as users go before what they use. */
async function clear(qmp: Qmp): Promise<string[]> {
  const isDrawn = (name = "") => !/^own|^chardev-|^monitor-|^io$|^qmp$|^compat/.test(name);
  let left: string[] = [];
  for (let round = 0; round < 20; round++) {
    left = [];
    const tryAll = async (command: string, member: string, names: (string | undefined)[]) => {
      for (const name of names.filter(isDrawn)) {
        const request = JSON.stringify({ execute: command, arguments: { [member]: name } });
        const reply = JSON.stringify(await exchange(qmp, request, "clear"));
        if (!reply.includes("Deleting main loop")) left.push(`${request} ${reply}`);
      }
    };
    const exports = await ask<Named[]>(qmp, "query-block-exports");
    for (const { id } of exports.filter((each) => isDrawn(each.id))) {
      await ask(qmp, "block-export-del", { id, mode: "hard" });
    }
    const nodes = await ask<Named[]>(qmp, "query-named-block-nodes");
    await tryAll(
      "blockdev-del",
      "node-name",
      nodes.map((node) => node["node-name"]),
    );
    const objects = await ask<Named[]>(qmp, "qom-list", { path: "/objects" });
    const ids = objects.filter(({ type = "" }) => type.startsWith("child<"));
    await tryAll(
      "object-del",
      "id",
      ids.map(({ name }) => name),
    );
    const chardevs = await ask<Named[]>(qmp, "query-chardev");
    await tryAll(
      "chardev-remove",
      "id",
      chardevs.map(({ label }) => label),
    );
    if (left.length === 0) break;
    await sleep(20);
  }
  return left;
}

/** Waits until the daemon has no more descriptors than `before`; returns those that it has. */
async function descriptorsLeft({ pid }: Daemon, before: readonly string[]): Promise<string[]> {
  let left: string[] = [];
  for (let round = 0; round < 300; round++) {
    left = descriptors(pid);
    for (const target of before) {
      const at = left.indexOf(target);
      if (at >= 0) left.splice(at, 1);
    }
    if (left.length === 0) break;
    await sleep(10);
  }
  return left;
}

/** What they lead to, without the numbers of sockets, and without those of threads, which stay. */
function descriptors(pid: number): string[] {
  const folder = `/proc/${pid}/fd`;
  const targets = readdirSync(folder).map((fd) => readlinkSync(`${folder}/${fd}`));
  return targets
    .filter((target) => !/\[event(fd|poll)\]/.test(target))
    .map((target) => target.replace(/^socket:.*/, "socket"));
}

/** One round. Returns how many commands were answered; throws what is wrong. */
export async function race(schema: readonly SchemaEntity[], seed: number): Promise<number> {
  await using directory = await temporaryDirectory();
  const { file, path } = directory;
  await furnish(file);
  await patternImage(file("own.raw"), 1024 * 1024);
  const running = await startDaemon(path, ARGS, { cwd: path });
  const { daemon, qmp } = running;
  pending.clear();
  try {
    const monitors = await openMonitors(running, file);
    await ask(qmp, "nbd-server-stop");
    const before = descriptors(daemon.pid);
    await playAll({ monitors, file, schema, seed });
    for (const monitor of monitors) await ask(monitor, "query-version");
    await ask(qmp, "nbd-server-stop");
    const left = await clear(qmp);
    if (left.length > 0) throw new Error(`cannot be removed: ${left.join("\n")}`);
    const open = await descriptorsLeft(daemon, before);
    if (open.length > 0) throw new Error(`still open: ${open.join(", ")}`);
    qmp.send({ execute: "quit" });
    const exit = await daemon.exitWithin(ANSWER_MS_MAX);
    if (exit !== 0) throw new Error(`exit ${exit}`);
    for (const name of SOCKETS) if (existsSync(file(name))) throw new Error(`${name} is left`);
    return MONITORS * STEPS;
  } catch (error) {
    throw new Error(`${error}\nexit ${daemon.exit}: ${daemon.stderr.slice(-2000)}`);
  } finally {
    daemon.kill();
  }
}

interface Play {
  readonly monitors: readonly Qmp[];
  readonly file: (name: string) => string;
  readonly schema: readonly SchemaEntity[];
  readonly seed: number;
}

/** All monitors and clients at once. */
async function playAll({ monitors, file, schema, seed }: Play): Promise<void> {
  let isOver = false;
  const disturbed = Array.from({ length: CLIENTS }, (_, n) =>
    disturb(file, new Random(seed + 100 + n), () => isOver),
  );
  const played = monitors.map(async (qmp, n) => {
    const drawing = new Drawing(schema, new Random(seed + n), 0.02);
    for (let at = 0; at < STEPS; at++) await exchange(qmp, drawing.step().text, `${n} ${at}`);
  });
  try {
    await Promise.all(played);
  } finally {
    isOver = true;
    await Promise.all(disturbed);
  }
}
