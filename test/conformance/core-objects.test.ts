/** Objects over QMP and on the command line, while exports use them. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { assertSameBytes, temporaryDirectory } from "../support/images.ts";
import { runDaemon, startDaemon } from "../support/process.ts";
import type { Qmp } from "../support/qmp.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

async function valuesOf(qmp: Qmp, path: string): Promise<Record<string, unknown>> {
  const [object] = await qmp.execute<{ properties: { name: string; value?: unknown }[] }[]>(
    "qom-list-get",
    { paths: [path] },
  );
  return Object.fromEntries(object!.properties.map(({ name, value }) => [name, value]));
}

describe("objects of the command line", () => {
  test("are found by path, each with its properties", async () => {
    await using directory = await temporaryDirectory();
    const rules = '{"rules":[{"match":"*.example","policy":"allow","format":"glob"}]}';
    await writeFile(directory.file("rules.json"), rules);
    const objects = [
      "iothread,id=io0,poll-max-ns=1000",
      "main-loop,id=loop,aio-max-batch=3",
      "secret,id=s0,data=hidden",
      "authz-simple,id=a0,identity=fred",
      "authz-list,id=a1,policy=allow,rules.0.match=x,rules.0.policy=deny",
      `authz-listfile,id=a2,filename=${directory.file("rules.json")}`,
    ];
    await using running = await startDaemon(
      directory.path,
      objects.flatMap((object) => ["--object", object]),
    );
    const { qmp } = running;
    expect(await valuesOf(qmp, "/objects/io0")).toMatchObject({ "poll-max-ns": 1000 });
    expect(await valuesOf(qmp, "loop")).toMatchObject({ type: "main-loop", "aio-max-batch": 3 });
    expect(await valuesOf(qmp, "a0")).toEqual({ type: "authz-simple", identity: "fred" });
    expect(await valuesOf(qmp, "a1")).toEqual({
      type: "authz-list",
      policy: "allow",
      rules: [{ match: "x", policy: "deny" }],
    });
    expect(await valuesOf(qmp, "a2")).toMatchObject({ type: "authz-list-file", refresh: true });
    const listed = await qmp.execute<{ name: string; type: string }[]>("qom-list", {
      path: "/objects",
    });
    expect(listed).toContainEqual({ name: "s0", type: "child<secret>" });
    await expect(qmp.execute("qom-list", { path: "nope" })).rejects.toThrow(
      "Device 'nope' not found",
    );
  });

  test("end the start when they can't be made", async () => {
    const cases = [
      ["secret,id=s", "Either 'file' or 'data' must be provided"],
      ["secret,id=s,file=/nonexist", "Failed to open file “/nonexist”"],
      ["authz-pam,id=p,service=x", "invalid object type: authz-pam"],
      ["iothread,id=1", "Parameter 'id' expects an identifier"],
      ["iothread,id=a,poll-weight=64", "poll-weight value must be in range [0, 63]"],
    ] as const;
    for (const [object, message] of cases) {
      const { exit, stderr } = await runDaemon(["--object", object]);
      expect([object, exit]).toEqual([object, 1]);
      expect(stderr).toContain(message);
    }
  });
});

describe("a secret", () => {
  test("appears in no reply", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, [
      "--object",
      "secret,id=s0,data=hidden",
    ]);
    const { qmp } = running;
    await expect(qmp.execute("qom-get", { path: "s0", property: "data" })).rejects.toThrow(
      "Property 'secret.data' is not readable",
    );
    const replies = [
      await qmp.execute("qom-list", { path: "s0" }),
      await qmp.execute("qom-list-get", { paths: ["s0", "/objects"] }),
    ];
    expect(JSON.stringify(replies)).not.toContain("hidden");
  });
});

describe("qom-set", () => {
  test("changes how a thread polls while it serves", async () => {
    await using disk = await serve({
      before: ["--object", "iothread,id=io0"],
      export: "iothread=io0",
    });
    const { qmp } = disk;
    const client = await disk.open();
    for (const pollMaxNs of [0, 1_000_000, 0]) {
      const property = { path: "io0", property: "poll-max-ns" };
      await qmp.execute("qom-set", { ...property, value: pollMaxNs });
      expect(await qmp.execute("qom-get", property)).toBe(pollMaxNs);
      assertSameBytes(await client.read(0, 4096), disk.content.subarray(0, 4096));
    }
    client.close();
  });
});

describe("an iothread", () => {
  test("may have the name of the built-in one", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    await qmp.execute("object-add", { "qom-type": "iothread", id: "main-loop" });
    const nbd = { type: "nbd", "node-name": "disk", iothread: "nope" };
    await expect(qmp.execute("block-export-add", { ...nbd, id: "e1" })).rejects.toThrow(
      'iothread "nope" not found',
    );
    await qmp.execute("object-del", { id: "main-loop" });
    const client = await disk.open();
    assertSameBytes(await client.read(0, 512), disk.content.subarray(0, 512));
    client.close();
  });
});
