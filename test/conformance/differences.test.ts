/** What outport does on purpose where qemu-storage-daemon fails, if no other suite has it. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { run } from "../support/clients.ts";
import { patternImage, temporaryDirectory } from "../support/images.ts";
import { runDaemon } from "../support/process.ts";
import { serve, unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

describe("a further --nbd-server", () => {
  test("is a further address of the one server", async () => {
    await using directory = await temporaryDirectory();
    const second = directory.file("second.sock");
    await using disk = await serve({
      after: ["--nbd-server", `addr.type=unix,addr.path=${second}`],
    });
    for (const uri of [disk.uri, unixUri(second, "disk")]) {
      expect(Number(await run("nbdinfo", ["--size", uri]))).toBe(disk.bytes);
    }
    await disk.qmp.execute("nbd-server-stop");
    await expect(run("nbdinfo", ["--size", unixUri(second, "disk")])).rejects.toThrow();
  });
});

describe("raw", () => {
  test("with a negative offset or size fails with a message, not by a signal", async () => {
    await using directory = await temporaryDirectory();
    const image = directory.file("disk.raw");
    await patternImage(image, 65_536);
    for (const window of ["offset=-512", "size=-512", "offset=9223372036854775807"]) {
      const file = `file.driver=file,file.filename=${image}`;
      const node = `driver=raw,node-name=r,${window},${file}`;
      expect((await runDaemon(["--blockdev", node])).exit).toBe(1);
    }
  });

  test("with cache.direct=on refuses a window between two blocks", async () => {
    const raw = "offset=100,size=65536";
    await expect(serve({ file: "cache.direct=on", raw })).rejects.toThrow(
      "is not a multiple of the request alignment",
    );
  });
});

describe("an id, a name or a path with odd characters", () => {
  test("is an error or works, and never ends the daemon", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const odd = ["", "\u0000", "%s%n", "../../x", "ä€😀", "a".repeat(5000), "a,b=c", "\n"];
    for (const text of odd) {
      for (const [command, args] of [
        ["block-export-add", { type: "nbd", id: text, "node-name": "disk", name: text }],
        ["block-export-add", { type: "nbd", id: "x1", "node-name": text }],
        ["block-export-del", { id: text }],
        ["blockdev-add", { driver: "file", "node-name": text, filename: text }],
        ["blockdev-add", { driver: text, "node-name": "n" }],
        ["blockdev-del", { "node-name": text }],
        ["object-add", { "qom-type": "iothread", id: text }],
        ["object-del", { id: text }],
      ] as const) {
        await qmp
          .execute(command, args)
          .catch((error: Error) => expect(error.name).toBe("QmpError"));
      }
    }
    expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(disk.bytes);
  });
});
