/** What a monitor tells of itself: its commands, their types, and that its replies keep to them. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { check } from "../../src/qapi/check.ts";
import { introspect } from "../../src/qapi/introspect.ts";
import { catalogue } from "../support/catalogue.ts";
import { temporaryDirectory } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";

setDefaultTimeout(180_000);

const { commands, events } = catalogue();

describe("a monitor", () => {
  test("tells its schema, which has the commands of query-commands", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const schema = await running.qmp.execute("query-qmp-schema");
    expect(schema).toEqual(JSON.parse(JSON.stringify(introspect(commands, events))));
    const names = (schema as { name: string; "meta-type": string }[])
      .filter((entry) => entry["meta-type"] === "command")
      .map(({ name }) => ({ name }));
    expect(await running.qmp.execute("query-commands")).toEqual(names);
  });

  test("replies to queries with what their schemas say", async () => {
    await using directory = await temporaryDirectory();
    const image = `${directory.path}/image`;
    writeFileSync(image, new Uint8Array(65536));
    await using running = await startDaemon(directory.path, [
      "--object",
      "iothread,id=io0",
      "--blockdev",
      `driver=raw,node-name=disk,file.driver=file,file.filename=${image}`,
      "--blockdev",
      "driver=null-co,node-name=zero",
      "--nbd-server",
      `addr.type=unix,addr.path=${directory.path}/nbd`,
      "--export",
      "nbd,id=e,node-name=disk,writable=on",
    ]);
    const queries = commands.filter(({ name }) =>
      /^(query-|x-debug-query-|qom-list-types)/.test(name),
    );
    expect(queries.length).toBeGreaterThan(5);
    for (const { name, returns } of queries) {
      const reply = await running.qmp.execute(name);
      expect([name, check(returns, reply)]).toEqual([name, reply]);
    }
  });
});
