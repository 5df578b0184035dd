/** The monitor's own rules: negotiation, malformed input, and that it lives on after each. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { temporaryDirectory } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";

setDefaultTimeout(180_000);

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

  test("knows out-of-band execution once it is enabled", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    running.qmp.close();
    const qmp = await Qmp.connectRaw(running.monitor);
    const answer = async (request: string) => {
      qmp.sendText(request);
      const { error } = await qmp.take((message) => "error" in message || "return" in message);
      return (error as { desc: string } | undefined)?.desc;
    };
    await qmp.take((message) => "QMP" in message);
    expect(await answer('{"exec-oob": "query-version"}')).toBe(
      "QMP input member 'exec-oob' is unexpected",
    );
    expect(await answer('{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}')).toBe(
      "Parameter 'null' does not accept value 'foo'",
    );
    expect(await answer('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')).toBe(
      undefined,
    );
    const cases = [
      ['{"exec-oob": "query-version"}', "The command query-version does not support OOB"],
      ['{"exec-oob": "nope"}', "The command nope has not been found"],
      ['{"exec-oob": 7}', "QMP input member 'exec-oob' must be a string"],
      [
        '{"execute": "query-version", "exec-oob": "query-version"}',
        "QMP input member 'execute' clashes with 'exec-oob'",
      ],
    ] as const;
    for (const [request, message] of cases) expect(await answer(request)).toBe(message);
    qmp.close();
  });

  test("gives ids back as they came, whatever they are", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const { qmp } = running;
    for (const id of ["null", "true", '"x"', '{"a": [1, {}]}', "[]", "-1", "1.5"]) {
      qmp.sendText(`{"execute":"query-block-exports","id":${id}}{"execute":"nope","id":${id}}`);
      const replies = [
        await qmp.take((message) => "return" in message),
        await qmp.take((message) => "error" in message),
      ];
      expect(replies.map((reply) => reply.id)).toEqual([JSON.parse(id), JSON.parse(id)]);
    }
  });

  test("quits for all: others see events, then the end", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("other.sock");
    await using running = await startDaemon(directory.path, [
      ...["--blockdev", "null-co,node-name=n"],
      ...["--nbd-server", `addr.type=unix,addr.path=${directory.file("nbd")}`],
      ...["--export", "nbd,id=e,node-name=n"],
      ...["--chardev", `socket,id=o,path=${path},server=on,wait=off`, "--monitor", "o,pretty=off"],
    ]);
    const other = await Qmp.connect(path);
    running.qmp.sendText('{"execute":"quit","id":1}{"execute":"query-version","id":2}');
    expect(await running.qmp.take((message) => message.id === 1)).toEqual({ return: {}, id: 1 });
    expect((await other.event("BLOCK_EXPORT_DELETED")).data).toEqual({ id: "e" });
    await expect(other.take((message) => "return" in message)).rejects.toThrow("closed");
    await expect(running.qmp.take((message) => message.id === 2)).rejects.toThrow("closed");
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
