/**
 * What the reference release, qemu-storage-daemon 11.1.3, says to wrong arguments. Written by
 * this very file: bun test/support/argument-errors.ts PROGRAM [ARGUMENT...]
 */
import { readFileSync, writeFileSync } from "node:fs";
import { argumentCases } from "./argument-cases.ts";
import { catalogue } from "./catalogue.ts";
import { startProgram } from "./process.ts";
import { Qmp } from "./qmp.ts";

/** The message is empty where the arguments are right as such. */
export type ArgumentError = readonly [command: string, args: string, message: string];

const FILE = new URL("./argument-errors.jsonl", import.meta.url);

export function readArgumentErrors(): readonly ArgumentError[] {
  const lines = readFileSync(FILE, "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line) as ArgumentError);
}

/** Other errors come from the command itself. */
const ARGUMENT_ERROR =
  /^(Invalid parameter type for |Parameter '.*' (is missing|is unexpected|does not|expects u?int))/;

async function record(program: readonly string[]): Promise<void> {
  const monitor = ["--chardev", "stdio,id=m", "--monitor", "m"];
  const daemon = startProgram([...program, ...monitor], { stdin: "pipe", rawStdout: true });
  const qmp = new Qmp(daemon.stdio.stdout, daemon.stdio.stdin);
  await qmp.negotiate();
  const lines: string[] = [];
  for (const [id, [command, args]] of argumentCases(catalogue().commands).entries()) {
    qmp.sendText(`{"execute":${JSON.stringify(command)},"arguments":${args},"id":${id}}`);
    const { error } = await qmp.take((message) => message.id === id);
    const said = (error as { desc: string } | undefined)?.desc ?? "";
    const entry: ArgumentError = [command, args, ARGUMENT_ERROR.test(said) ? said : ""];
    lines.push(`${JSON.stringify(entry)}\n`);
  }
  writeFileSync(FILE, lines.join(""));
  await daemon.stop();
}

if (import.meta.main) await record(process.argv.slice(2));
