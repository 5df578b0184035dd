/** The monitor's own rules: negotiation, malformed input, and that it lives on after each. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { temporaryDirectory } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";

setDefaultTimeout(30_000);

describe("a monitor", () => {
  test("greets with its version, and wants negotiation first", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    running.qmp.close();
    const qmp = await Qmp.connectRaw(running.monitor);
    const greeting = await qmp.take((message) => "QMP" in message);
    expect(greeting).toMatchObject({
      QMP: { version: { qemu: { major: expect.any(Number) } }, capabilities: expect.any(Array) },
    });
    await expect(qmp.execute("query-version")).rejects.toThrow(
      "Expecting capabilities negotiation with 'qmp_capabilities'",
    );
    await qmp.execute("qmp_capabilities");
    expect(await qmp.execute("query-version")).toHaveProperty("qemu.major");
    await expect(qmp.execute("qmp_capabilities")).rejects.toThrow(
      "Capabilities negotiation is already complete, command ignored",
    );
    qmp.close();
  });

  test("answers malformed input with an error, and the next command with its result", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const { qmp } = running;
    const inputs = [
      ["[1, 2]", "QMP input must be a JSON object"],
      ['{"foo": 1}', "QMP input member 'foo' is unexpected"],
      ['{"execute": 7}', "QMP input member 'execute' must be a string"],
      ['{"execute": "quit", "arguments": 3}', "QMP input member 'arguments' must be an object"],
      ["{}", "QMP input lacks member 'execute'"],
      ['{"execute": "nope"}', "The command nope has not been found"],
      ['{"execute": }', "JSON parse error, expecting value"],
    ] as const;
    for (const [input, message] of inputs) {
      qmp.sendText(`${input}\n`);
      const reply = await qmp.take((each) => "error" in each);
      expect((reply.error as { desc: string }).desc).toContain(message);
      expect(await qmp.execute("query-block-exports")).toEqual([]);
    }
  });

  test("takes commands in pieces, in one piece, and with single quotes", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const { qmp } = running;
    const text = "{'execute': 'query-block-exports', 'id': 'n'}";
    for (const character of text) qmp.sendText(character);
    qmp.sendText(text + text);
    for (let n = 0; n < 3; n++) {
      expect(await qmp.take((each) => each.id === "n")).toEqual({ return: [], id: "n" });
    }
  });

  test("lists the commands that there are", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const commands = await running.qmp.execute<{ name: string }[]>("query-commands");
    const names = commands.map((each) => each.name);
    const wanted = [
      ...["qmp_capabilities", "query-version", "query-commands", "quit"],
      ...["blockdev-add", "blockdev-del", "query-named-block-nodes", "object-add", "object-del"],
      ...["nbd-server-start", "nbd-server-stop", "query-block-exports"],
      ...["block-export-add", "block-export-del"],
    ];
    expect(wanted.filter((name) => !names.includes(name))).toEqual([]);
  });

  test("may be left and taken again; others do not notice", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    running.qmp.close();
    for (let n = 0; n < 10; n++) {
      const qmp = await Qmp.connect(running.monitor);
      expect(await qmp.execute("query-block-exports")).toEqual([]);
      qmp.close();
    }
  });
});
