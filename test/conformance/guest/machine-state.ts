/**
 * What tells why a machine does not go on: where its processors are, how far its BIOS came, and
 * what QEMU and outport know of its disks. Asked for once the test has failed: looking at a queue
 * stops it.
 */

import { readFile } from "node:fs/promises";
import { sleep } from "../../support/process.ts";
import type { Qmp } from "../../support/qmp.ts";

const ANSWERED_WITHIN_MS = 5_000;
/** Each pause shows whether the processors move. */
const LOOKS = 3;
const LOOK_PAUSE_MS = 500;
const BIOS_CHARACTERS = 600;
/** Of each processor: where it is, and what it is about. */
const REGISTERS = /^(CPU#|R(IP|SP)=|EIP=|EAX=|.*HLT=|CR0=)/;

export interface MachineParts {
  readonly qmp: Qmp;
  readonly biosLog: string;
  readonly queueCounts: readonly number[];
  /** The back-end's monitor. */
  readonly backEnd: Qmp;
}

/** Never throws, and ends in time, whatever hangs. */
export async function machineState(parts: MachineParts): Promise<string> {
  const bios = await readFile(parts.biosLog, "latin1").catch((error: Error) => error.message);
  const sections = [`-- its BIOS:\n${bios.slice(-BIOS_CHARACTERS)}`];
  // First what changes nothing. No other answer comes after one that does not come.
  sections.push(`-- outport:\n${await backEndState(parts.backEnd)}`);
  sections.push(`-- its processors:\n${await processorStates(parts.qmp)}`);
  sections.push(`-- its disks:\n${await diskStates(parts)}`);
  return sections.join("\n");
}

/** The answer as text, or why there is none. */
async function ask(qmp: Qmp, command: string, args?: Record<string, unknown>): Promise<string> {
  const answer = qmp.execute(command, args).then(
    (value) => (typeof value === "string" ? value : JSON.stringify(value)),
    (error: Error) => error.message,
  );
  const { promise: late, resolve } = Promise.withResolvers<string>();
  const timer = setTimeout(
    () => resolve(`no answer in ${ANSWERED_WITHIN_MS} ms`),
    ANSWERED_WITHIN_MS,
  );
  const said = await Promise.race([answer, late]);
  clearTimeout(timer);
  return said;
}

async function backEndState(backEnd: Qmp): Promise<string> {
  const stats = await ask(backEnd, "query-blockstats", { "query-nodes": true });
  const counts = stats.matchAll(/"(?:node-name|(?:rd|wr|flush)_operations)":[^,}]*/g);
  const exports = await ask(backEnd, "query-block-exports");
  return `${[...counts].join(" ") || stats}\n${exports}`;
}

async function processorStates(qmp: Qmp): Promise<string> {
  const looks = [await ask(qmp, "query-status")];
  for (let look = 0; look < LOOKS; look++) {
    if (look > 0) await sleep(LOOK_PAUSE_MS);
    const command = { "command-line": "info registers -a" };
    const said = await ask(qmp, "human-monitor-command", command);
    const lines = said.replaceAll("\r", "").split("\n");
    const chosen = lines.filter((line) => REGISTERS.test(line));
    looks.push((chosen.length > 0 ? chosen : lines).join("\n"));
  }
  return looks.join("\n");
}

async function diskStates({ qmp, queueCounts }: MachineParts): Promise<string> {
  const listed = await ask(qmp, "x-query-virtio");
  const paths = [...listed.matchAll(/"path": ?"([^"]*)"/g)].map(([, path]) => path as string);
  const said = [listed];
  for (const path of paths) said.push(await ask(qmp, "x-query-virtio-status", { path }));
  const queues = paths.flatMap((path, disk) =>
    Array.from({ length: queueCounts[disk] ?? 1 }, (_, queue) => ({ path, queue })),
  );
  for (const command of ["x-query-virtio-vhost-queue-status", "x-query-virtio-queue-status"]) {
    for (const queue of queues) said.push(await ask(qmp, command, queue));
  }
  return said.join("\n");
}
