/** applyOption(): which command an option is, and how its text is read. */
import { describe, expect, test } from "bun:test";
import type { Chardevs } from "../../../src/chardev/manager.ts";
import { parseArguments } from "../../../src/cli/arguments.ts";
import type { Answer } from "../../../src/cli/command-line.ts";
import { applyOption } from "../../../src/cli/options.ts";
import type { Tracing } from "../../../src/cli/tracing.ts";
import type { ObjectKind } from "../../../src/objects/registry.ts";
import { str } from "../../../src/qapi/scalars.ts";
import type { Dispatcher } from "../../../src/qmp/dispatcher.ts";

const objectKinds = [
  {
    name: "thing",
    members: { size: str },
    type: {
      name: "thing",
      properties: [
        { name: "size", type: "int" },
        { name: "found-out", type: "int" },
      ],
    },
  },
  { name: "absent", members: {}, type: { name: "absent", properties: [] }, unavailable: "no" },
] as unknown as readonly ObjectKind[];

/** What the option did, in order. */
async function run(...args: string[]): Promise<{ done: unknown[]; answer: Answer | undefined }> {
  const done: unknown[] = [];
  const [option] = parseArguments(args);
  if (option === undefined) throw new Error("no option");
  const answer = await applyOption(option, {
    dispatcher: {
      execute: async (...args: unknown[]) => void done.push(args),
    } as unknown as Dispatcher,
    chardevs: {
      add: async (...args: unknown[]) => void done.push(args),
    } as unknown as Chardevs,
    tracing: {
      add: async ({ value }: { value: string }) => void done.push(["trace", value]),
    } as unknown as Tracing,
    objectKinds,
    log: (...args) => void done.push(args),
    setPidfile: (path) => void done.push(["pidfile", path]),
    serveImage: async (path) => void done.push(["image", path]),
    makeMonitorId: () => "compat_monitor0",
  });
  return { done, answer };
}

const apply = async (...args: string[]): Promise<unknown[]> => (await run(...args)).done;

const commandLine = { commandLine: true };

describe("applyOption()", () => {
  test("runs commands with key=value or JSON", async () => {
    expect(await apply("--blockdev", "file,read-only=on")).toEqual([
      ["blockdev-add", { driver: "file", "read-only": "on" }, commandLine, "keyval"],
    ]);
    expect(await apply("--export", '{"type":"nbd","writable":true}')).toEqual([
      ["block-export-add", { type: "nbd", writable: true }, commandLine, "json"],
    ]);
    expect(await apply("--object", "iothread,id=a")).toEqual([
      ["object-add", { "qom-type": "iothread", id: "a" }, commandLine, "keyval"],
    ]);
  });

  test("reads the flat form of --nbd-server's address", async () => {
    const text = "addr.type=inet,addr.host=h,addr.port=1,max-connections=0x10";
    const addr = { type: "inet", data: { host: "h", port: "1" } };
    expect(await apply("--nbd-server", text)).toEqual([
      ["nbd-server-start", { "max-connections": 16, addr }, commandLine],
    ]);
    await expect(apply("--nbd-server", "addr.type=unix,addr.data.path=x")).rejects.toThrow(
      "Parameter 'addr.path' is missing",
    );
  });

  test("makes a monitor an object", async () => {
    const added = (id: string, more: object) => [
      ["object-add", { "qom-type": "monitor-qmp", id, chardev: "c", ...more }, commandLine],
    ];
    expect(await apply("--monitor", "c")).toEqual(added("compat_monitor0", {}));
    expect(await apply("--monitor", "chardev=c,mode=control,pretty=on,id=m")).toEqual(
      added("m", { pretty: true }),
    );
    await expect(apply("--monitor", "c,mode=readline")).rejects.toThrow("Only QMP is supported");
    await expect(apply("--monitor", "mode=control")).rejects.toThrow(
      "Parameter 'chardev' is missing",
    );
  });

  test("makes a character device, and says what is not well written", async () => {
    expect(await apply("--chardev", "stdio,id=a,signal")).toEqual([
      [
        "warn",
        "short-form boolean option 'signal' deprecated",
        { option: "--chardev stdio,id=a,signal", hint: "Please use signal=on instead" },
      ],
      ["a", { type: "stdio", data: { signal: true } }, "command-line"],
    ]);
    const { answer, done } = await run("--chardev", "help");
    expect([answer?.exitCode, done]).toEqual([0, []]);
  });

  test("leaves --pidfile and --trace to others", async () => {
    expect(await apply("--pidfile", "/run/x.pid")).toEqual([["pidfile", "/run/x.pid"]]);
    expect(await apply("-T", "blk_*")).toEqual([["trace", "blk_*"]]);
  });

  test("explains objects", async () => {
    const kinds = { text: "List of user creatable objects:\n  thing\n", exitCode: 0 };
    for (const text of ["help", "?", "nope,help", "absent,help"]) {
      expect(await run("--object", text)).toEqual({ done: [], answer: kinds as Answer });
    }
    const thing = { text: "thing options:\n  size=<int>\n", exitCode: 0 };
    for (const text of ["thing,help", "thing,id=a,?", "qom-type=thing,help"]) {
      expect(await run("--object", text)).toEqual({ done: [], answer: thing as Answer });
    }
    await expect(run("--object", "help,thing")).rejects.toThrow(
      "Expected '=' after parameter 'thing'",
    );
  });

  test("has no help where QSD has none", async () => {
    for (const option of ["--blockdev", "--export", "--monitor", "--nbd-server"]) {
      await expect(run(option, "help")).rejects.toThrow("Help is not available for this option");
    }
  });

  test("refuses an argument of no option when its turn comes", async () => {
    await expect(run("stray")).rejects.toThrow("Unexpected argument");
  });
});
