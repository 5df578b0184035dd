/** --trace: the points that an operator sees fire, in every thread. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { runDaemon, startDaemon } from "../support/process.ts";

setDefaultTimeout(180_000);

const ENOUGH = ["--blockdev", "nope"];
const NULL = ["--blockdev", "null-co,node-name=n,size=1048576"];

/** What a short life with these patterns writes to its file, by point. */
async function traced(
  directory: TemporaryDirectory,
  patterns: readonly string[],
  more: readonly string[] = [],
): Promise<Map<string, string[]>> {
  const socket = directory.file("nbd.sock");
  {
    await using running = await startDaemon(directory.path, [
      ...["--trace", `file=${directory.file("trace")}`],
      ...patterns.flatMap((pattern) => ["-T", pattern]),
      ...["--object", "iothread,id=io0", ...NULL],
      ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
      ...["--export", "nbd,id=e,node-name=n,name=disk,writable=on", ...more],
    ]);
    const client = await NbdClient.open({ path: socket }, { exportName: "disk" });
    await client.read(4096, 512);
    await client.disconnect();
    await running.qmp.execute("block-export-del", { id: "e", mode: "hard" });
  }
  const lines = readFileSync(directory.file("trace"), "utf8").trimEnd().split("\n");
  const points = new Map<string, string[]>();
  for (const line of lines.filter((each) => each !== "")) {
    const [name = "", ...rest] = line.split(" ");
    points.set(name, [...(points.get(name) ?? []), rest.join(" ")]);
  }
  return points;
}

describe("--trace", () => {
  test("shows an NBD connection from its handshake to its end", async () => {
    await using directory = await temporaryDirectory();
    const points = await traced(directory, ["nbd_*"]);
    expect([...points.keys()]).toEqual(
      expect.arrayContaining([
        "nbd_server_listen",
        "nbd_client_connect",
        "nbd_negotiate_begin",
        "nbd_negotiate_options_flags",
        "nbd_negotiate_options_check_option",
        "nbd_negotiate_success",
        "nbd_receive_request",
        "nbd_client_disconnect",
      ]),
    );
    expect(points.get("nbd_receive_request")?.[0]).toBe(
      "Got request: { .flags = 0x0, .type = 0x0, from = 4096, len = 512 }",
    );
    expect([...points.keys()].filter((name) => !name.startsWith("nbd_"))).toEqual([]);
  });

  test("reaches iothreads that start later", async () => {
    await using directory = await temporaryDirectory();
    const points = await traced(directory, ["blk_co_*", "io_engine"]);
    expect(points.get("blk_co_preadv")?.[0]).toBe("node n offset 4096 bytes 512 flags 0x0");
    expect(points.get("io_engine")?.[0]).toMatch(/^io0 (io_uring|epoll)$/);
  });

  test("shows monitor commands, objects, the graph and exports", async () => {
    await using directory = await temporaryDirectory();
    const points = await traced(directory, ["*"]);
    expect(points.get("object_new")).toContain("id=io0 type=iothread");
    expect(points.get("blk_root_attach")).toEqual(["node n"]);
    expect(points.get("blk_root_detach")).toEqual(["node n"]);
    expect(points.get("blk_exp_add")).toEqual(["id e type nbd node n"]);
    expect(points.get("blk_exp_delete")).toEqual(["id e"]);
    expect(points.get("monitor_protocol_event_emit")).toEqual(["event=BLOCK_EXPORT_DELETED"]);
    const commands = points.get("handle_qmp_command") ?? [];
    expect(commands.find((text) => text.includes("block-export-del"))).toContain('"mode": "hard"');
    expect(points.get("bdrv_open_common")?.[0]).toContain("node n");
  });

  test("takes points away again, and writes nothing then", async () => {
    await using directory = await temporaryDirectory();
    const points = await traced(directory, ["*", "-*", "blk_root_*", "-blk_root_attach"]);
    expect([...points]).toEqual([["blk_root_detach", ["node n"]]]);
  });

  test("goes to stderr without a file", async () => {
    const args = ["--trace", "object_new", "--object", "iothread,id=a", ...ENOUGH];
    const { stderr } = await runDaemon(args);
    expect(stderr.split("\n")[0]).toBe("object_new id=a type=iothread");
  });

  test("lists its points", async () => {
    for (const args of [["--trace", "help"], ["-T", "?"], ["-Thelp"], ["--trace", "enable=help"]]) {
      const { exit, stdout } = await runDaemon(args);
      expect(exit).toBe(0);
      expect(stdout.split("\n")).toContain("nbd_receive_request");
    }
  });

  test("fails in QSD's words", async () => {
    const cases: [string, string][] = [
      ["events=/none", "outport:/none: No such file or directory\n"],
      [
        "file=/none/a",
        "outport: --trace file=/none/a: " +
          "Error opening logfile /none/a: No such file or directory\n",
      ],
      ["foo=bar", "outport: --trace foo=bar: Invalid parameter 'foo'\n"],
      ["file=/tmp/%s", "outport: --trace file=/tmp/%s: Bad logfile template: /tmp/%s\n"],
    ];
    for (const [text, message] of cases) {
      const { exit, stderr } = await runDaemon(["--trace", text]);
      expect([exit, stderr]).toEqual([1, message]);
    }
  });
});
