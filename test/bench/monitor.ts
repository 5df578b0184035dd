/**
 * How fast monitors are: commands a second on each of several, pipelined and one at a time, and
 * how long an event takes to its client. OUTPORT_COMMAND names the program, as for the tests.
 */

import { connect, type Socket } from "node:net";
import { temporaryDirectory } from "../support/images.ts";
import { spawnDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";

const PIPELINED = 50_000;
const SINGLE = 10_000;
const ADDED = 200;
const COMMANDS = ["query-version", "query-block-exports"] as const;

/** Nothing but bytes: a parser here would be measured, too. */
class RawClient {
  readonly #socket: Socket;
  #lines = 0;
  #wanted = Number.POSITIVE_INFINITY;
  #onWanted: () => void = () => {};

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes: Uint8Array) => {
      for (const byte of bytes) if (byte === 0x0a) this.#lines++;
      if (this.#lines >= this.#wanted) this.#onWanted();
    });
  }

  static async open(path: string): Promise<RawClient> {
    const socket = connect({ path });
    const client = new RawClient(socket);
    await client.lines(1, "");
    await client.lines(1, '{"execute":"qmp_capabilities"}');
    return client;
  }

  /** Sends `text`; resolves when `count` more lines are there. */
  lines(count: number, text: string): Promise<void> {
    this.#wanted = this.#lines + count;
    return new Promise((resolve) => {
      this.#onWanted = resolve;
      if (text !== "") this.#socket.write(text);
    });
  }

  close(): void {
    this.#socket.destroy();
  }
}

async function perSecond(count: number, run: () => Promise<unknown>): Promise<string> {
  const start = performance.now();
  await run();
  return `${Math.round((count / (performance.now() - start)) * 1000)} a second`;
}

async function measureCommand(paths: readonly string[], command: string): Promise<void> {
  const clients = await Promise.all(paths.map(RawClient.open));
  const [first] = clients;
  if (first === undefined) throw new Error("no monitor");
  const text = `{"execute":"${command}"}`;
  const batch = text.repeat(PIPELINED);
  await first.lines(PIPELINED, batch);
  const pipelined = await perSecond(PIPELINED, () => first.lines(PIPELINED, batch));
  const single = await perSecond(SINGLE, async () => {
    for (let count = 0; count < SINGLE; count++) await first.lines(1, text);
  });
  const all = await perSecond(PIPELINED, () =>
    Promise.all(clients.map((client) => client.lines(PIPELINED, batch))),
  );
  console.log(`${command.padEnd(22)}pipelined ${pipelined}, one at a time ${single},`);
  console.log(`${"".padEnd(22)}each of ${clients.length} monitors pipelined ${all}`);
  for (const client of clients) client.close();
}

/** From the reply of what deletes an export to its event, on another monitor. */
async function measureEvents(doer: string, listener: string): Promise<void> {
  const [acting, listening] = [await Qmp.connect(doer), await Qmp.connect(listener)];
  await acting.execute("blockdev-add", { driver: "null-co", "node-name": "n" });
  const args = { addr: { type: "unix", data: { path: `${doer}.nbd` } } };
  await acting.execute("nbd-server-start", args);
  const late: number[] = [];
  for (let count = 0; count < ADDED; count++) {
    await acting.execute("block-export-add", { type: "nbd", id: "e", "node-name": "n" });
    const event = listening.event("BLOCK_EXPORT_DELETED");
    const seen = event.then(() => performance.now());
    const { timestamp } = (await acting
      .execute("block-export-del", { id: "e" })
      .then(() => event)) as unknown as { timestamp: { seconds: number; microseconds: number } };
    const emittedMs = timestamp.seconds * 1000 + timestamp.microseconds / 1000;
    late.push(performance.timeOrigin + (await seen) - emittedMs);
  }
  late.sort((a, b) => a - b);
  const [median, most] = [late[ADDED >> 1] ?? 0, late.at(-1) ?? 0];
  console.log(`event to client       median ${median.toFixed(2)} ms, most ${most.toFixed(2)} ms`);
  acting.close();
  listening.close();
}

/** Prints what monitors do a second. */
export async function measureMonitors(): Promise<void> {
  await using directory = await temporaryDirectory();
  const ids = ["m0", "m1", "m2", "m3"];
  const paths = ids.map((id) => directory.file(id));
  const daemon = spawnDaemon([
    ...ids.flatMap((id, index) => [
      ...["--chardev", `socket,id=${id},path=${paths[index]},server=on,wait=off`],
      ...["--monitor", id],
    ]),
    ...["--pidfile", directory.file("pid")],
  ]);
  await daemon.ready(directory.file("pid"));
  for (const command of COMMANDS) await measureCommand(paths, command);
  await measureEvents(paths[0] as string, paths[1] as string);
  console.log(`resident              ${(daemon.residentKiB() / 1024).toFixed(1)} MiB`);
  await daemon.stop();
}

if (import.meta.main) await measureMonitors();
