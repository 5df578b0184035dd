/** Tracing: patterns, files and the words of QEMU's trace/control.c. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { OptionError } from "../../../src/cli/option-error.ts";
import { Tracing } from "../../../src/cli/tracing.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { writeText } from "../../../src/runtime/text-file.ts";
import { Logger } from "../../../src/util/log.ts";
import type { TraceState } from "../../../src/util/trace.ts";
import { TRACE_NAMES } from "../../../src/util/trace-names.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const folder = mkdtempSync(join(tmpdir(), "outport-tracing-"));
afterAll(() => rmSync(folder, { recursive: true }));

function setUp() {
  const said: string[] = [];
  const states: TraceState[] = [];
  const logger = new Logger({ write: (text) => void said.push(text), realTimeUs: () => 0 });
  const tracing = new Tracing({
    linux,
    log: logger.for("main"),
    format: "text",
    apply: async (state) => void states.push(state),
  });
  const add = (value: string) => tracing.add({ name: "trace", value, text: `-T ${value}` });
  return { add, said, tracing, enabled: () => states.at(-1)?.enabled };
}

describe("Tracing", () => {
  test("adds up patterns, and takes away those behind a minus", async () => {
    const { add, enabled } = setUp();
    await add("blk_root_*");
    expect(enabled()).toEqual(["blk_root_attach", "blk_root_detach"]);
    await add("enable=bdrv_close");
    await add("-blk_root_attach");
    expect(enabled()).toEqual(["blk_root_detach", "bdrv_close"]);
    await add("-*");
    expect(enabled()).toEqual([]);
  });

  test("warns of a name that is none", async () => {
    const { add, said } = setUp();
    await add("nope");
    await add("-nope");
    await add("nope*");
    expect(said).toEqual([
      "outport: -T nope: warning: trace event 'nope' does not exist\n",
      "outport: -T -nope: warning: trace event 'nope' does not exist\n",
    ]);
  });

  test("reads patterns from a file", async () => {
    const { add, said, enabled } = setUp();
    const path = join(folder, "events");
    writeFileSync(path, "# comment\nblk_root_*\n\nnope\n-blk_root_detach");
    await add(`events=${path}`);
    expect(enabled()).toEqual(["blk_root_attach"]);
    expect(said).toEqual([`outport:${path}:4: warning: trace event 'nope' does not exist\n`]);
    const missing = await add("events=/nonexistent").catch((error: unknown) => error);
    expect(missing).toBeInstanceOf(OptionError);
    expect(missing).toMatchObject({
      message: "No such file or directory",
      place: { file: "/nonexistent" },
    });
  });

  test("opens a file of which the process id may be a part", async () => {
    const { add, tracing } = setUp();
    expect(tracing.fd).toBe(null);
    await add(`file=${join(folder, "trace-%d")}`);
    writeText(linux, tracing.fd ?? -1, "line\n");
    expect(readFileSync(join(folder, `trace-${driver.process.pid}`), "utf8")).toBe("line\n");
    for (const name of ["%d%d", "%s", "%"]) {
      await expect(add(`file=${folder}/${name}`)).rejects.toThrow(
        `Bad logfile template: ${folder}/${name}`,
      );
      expect(existsSync(`${folder}/${name}`)).toBe(false);
    }
    await expect(add("file=")).rejects.toThrow("Error opening logfile : No such file or directory");
  });

  test("lists what there is", async () => {
    const { add, said } = setUp();
    const list = { text: `${TRACE_NAMES.join("\n")}\n`, exitCode: 0 };
    expect(await add("help")).toEqual(list as never);
    expect(await add("blk*,enable=?")).toEqual(list as never);
    expect(await add("blk*,help")).toEqual({
      text: "trace options:\n  enable=<str>\n  events=<str>\n  file=<str>\n",
      exitCode: 1,
    });
    await expect(add("foo=1")).rejects.toThrow("Invalid parameter 'foo'");
    expect(said).toEqual([]);
  });
});
