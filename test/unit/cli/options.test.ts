/** applyOption(): which command an option is, and how its text is read. */
import { describe, expect, test } from "bun:test";
import { type OptionName, parseArguments } from "../../../src/cli/arguments.ts";
import type { Chardevs } from "../../../src/cli/chardevs.ts";
import { applyOption } from "../../../src/cli/options.ts";
import type { Dispatcher } from "../../../src/qmp/dispatcher.ts";

async function apply(name: OptionName, value: string): Promise<unknown[]> {
  const log: unknown[] = [];
  const dispatcher = {
    execute: async (...args: unknown[]) => void log.push(args),
  } as unknown as Dispatcher;
  const chardevs = {
    add: async (text: string) => void log.push(["chardev", text]),
    get: (id: string) => ({ attachMonitor: (pretty: boolean) => log.push([id, pretty]) }),
  } as unknown as Chardevs;
  const [option] = parseArguments([`--${name}`, value]);
  if (option === undefined) throw new Error("no option");
  const setPidfile = (path: string) => void log.push(["pidfile", path]);
  await applyOption(option, { dispatcher, chardevs, setPidfile });
  return log;
}

const commandLine = { commandLine: true };

describe("applyOption()", () => {
  test("runs commands with key=value or JSON", async () => {
    expect(await apply("blockdev", "file,read-only=on")).toEqual([
      ["blockdev-add", { driver: "file", "read-only": "on" }, commandLine, "keyval"],
    ]);
    expect(await apply("export", '{"type":"nbd","writable":true}')).toEqual([
      ["block-export-add", { type: "nbd", writable: true }, commandLine, "json"],
    ]);
    expect(await apply("object", "iothread,id=a")).toEqual([
      ["object-add", { "qom-type": "iothread", id: "a" }, commandLine, "keyval"],
    ]);
  });

  test("reads the flat form of --nbd-server's address", async () => {
    const text = "addr.type=inet,addr.host=h,addr.port=1,max-connections=0x10";
    const addr = { type: "inet", data: { host: "h", port: "1" } };
    expect(await apply("nbd-server", text)).toEqual([
      ["nbd-server-start", { "max-connections": 16, addr }, commandLine],
    ]);
    await expect(apply("nbd-server", "addr.type=unix,addr.data.path=x")).rejects.toThrow(
      "Parameter 'addr.path' is missing",
    );
  });

  test("puts a monitor on a character device", async () => {
    expect(await apply("monitor", "c")).toEqual([["c", false]]);
    expect(await apply("monitor", "chardev=c,mode=control,pretty=on")).toEqual([["c", true]]);
    await expect(apply("monitor", "c,mode=readline")).rejects.toThrow("Only QMP is supported");
    await expect(apply("monitor", "mode=control")).rejects.toThrow(
      "Parameter 'chardev' is missing",
    );
  });

  test("leaves --chardev and --pidfile to others", async () => {
    expect(await apply("chardev", "stdio,id=a")).toEqual([["chardev", "stdio,id=a"]]);
    expect(await apply("pidfile", "/run/x.pid")).toEqual([["pidfile", "/run/x.pid"]]);
  });
});
