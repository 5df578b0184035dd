/** What clients are told about a server and its exports. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { nbdsh, run } from "../support/clients.ts";
import { MiB, pattern, writeAt } from "../support/images.ts";
import { serve, unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

interface NbdInfo {
  readonly protocol: string;
  readonly structured?: boolean;
  readonly exports: readonly Record<string, unknown>[];
}

async function nbdinfo(...args: string[]): Promise<NbdInfo> {
  return JSON.parse(await run("nbdinfo", ["--json", ...args])) as NbdInfo;
}

describe("nbdinfo", () => {
  test("shows a writable export's size, description, contexts and abilities", async () => {
    await using disk = await serve({ export: "writable=on,description=The system disk" });
    const info = await nbdinfo(disk.uri);
    expect(info.protocol).toBe("newstyle-fixed");
    expect(info.structured).toBe(true);
    expect(info.exports).toHaveLength(1);
    expect(info.exports[0]).toMatchObject({
      "export-name": "disk",
      description: "The system disk",
      contexts: ["base:allocation"],
      "export-size": disk.bytes,
      is_rotational: false,
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 32 * MiB,
    });
  });

  test("shows that an export is read-only", async () => {
    await using disk = await serve({ export: "writable=off" });
    const info = await nbdinfo(disk.uri);
    expect(info.exports[0]).toMatchObject({
      is_read_only: true,
      can_trim: false,
      can_zero: false,
      can_flush: true,
      can_multi_conn: true,
    });
  });

  test("shows no multi-conn when one connection is allowed", async () => {
    await using disk = await serve({ server: "max-connections=1" });
    const flag = await nbdsh<boolean>(`
h.connect_uri("${disk.uri}")
show(h.can_multi_conn())`);
    expect(flag).toBe(false);
  });

  test("lists several exports, oldest first, by name and with descriptions", async () => {
    await using disk = await serve({
      after: [
        ...["--export", "type=nbd,id=e1,node-name=disk,name=second,description=another view"],
        ...["--export", "type=nbd,id=e2,node-name=disk,name=a name/with spaces"],
      ],
    });
    const { exports } = await nbdinfo("--list", unixUri(disk.socket, ""));
    expect(exports.map((each) => each["export-name"])).toEqual([
      "disk",
      "second",
      "a name/with spaces",
    ]);
    expect(exports[1]?.description).toBe("another view");
  });

  test("finds the default export under the empty name", async () => {
    await using disk = await serve({
      after: ["--export", "type=nbd,id=e1,node-name=disk,name="],
    });
    const size = await run("nbdinfo", ["--size", `nbd+unix:///?socket=${disk.socket}`]);
    expect(Number(size)).toBe(disk.bytes);
  });

  test("maps data and holes", async () => {
    await using disk = await serve({ bytes: 8 * MiB, sparse: true });
    await writeAt(disk.image, MiB, pattern(2 * MiB));
    const map = JSON.parse(await run("nbdinfo", ["--map", "--json", disk.uri]));
    expect(map).toEqual([
      { offset: 0, length: MiB, type: 3, description: "hole,zero" },
      { offset: MiB, length: 2 * MiB, type: 0, description: "data" },
      { offset: 3 * MiB, length: 5 * MiB, type: 3, description: "hole,zero" },
    ]);
  });

  test("maps allocation depth when the export offers it", async () => {
    await using disk = await serve({
      bytes: 4 * MiB,
      export: "writable=on,allocation-depth=on",
    });
    const depth = await run("nbdinfo", ["--map=qemu:allocation-depth", "--json", disk.uri]);
    expect(JSON.parse(depth)).toMatchObject([{ offset: 0, length: 4 * MiB, type: 1 }]);
  });
});

describe("size", () => {
  test("of a file is rounded up to a multiple of 512, the tail reads as zeroes", async () => {
    await using disk = await serve({ bytes: 1000, export: "writable=off" });
    const [size, tail] = await nbdsh<[number, string]>(`
h.connect_uri("${disk.uri}")
show([h.get_size(), h.pread(24, 1000).hex()])`);
    expect(size).toBe(1024);
    expect(tail).toBe("00".repeat(24));
  });

  test("of an empty file is 0", async () => {
    await using disk = await serve({ bytes: 0, sparse: true });
    expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(0);
  });

  test("beyond 4 GiB is exact, and the last sector is there", async () => {
    const bytes = 5 * 1024 * 1024 * MiB + 512;
    await using disk = await serve({ bytes, sparse: true });
    const shown = await nbdsh<[number, string]>(`
h.connect_uri("${disk.uri}")
h.pwrite(b"last one" * 64, ${bytes - 512})
h.flush()
show([h.get_size(), h.pread(8, ${bytes - 512}).decode()])`);
    expect(shown).toEqual([bytes, "last one"]);
  });
});

describe("other clients", () => {
  test("qemu-nbd --list shows sizes, flags and contexts", async () => {
    await using disk = await serve({ export: "writable=on,description=seen by qemu-nbd" });
    const said = await run("qemu-nbd", ["--list", "-k", disk.socket]);
    expect(said).toContain("exports available: 1");
    expect(said).toContain("export: 'disk'");
    expect(said).toContain("description: seen by qemu-nbd");
    expect(said).toContain(`size:  ${disk.bytes}`);
    const flags = "flush fua trim zeroes df multi cache fast-zero";
    expect(/flags: 0x[0-9a-f]+ \( (.*) \)/.exec(said)?.[1]).toBe(flags);
    expect(said).toContain("base:allocation");
  });

  test("nbd-client -l lists the exports over a unix socket", async () => {
    await using disk = await serve({
      after: ["--export", "type=nbd,id=e1,node-name=disk,name=second"],
    });
    const said = await run("nbd-client", ["-unix", disk.socket, "-l"]);
    expect(said).toContain("disk\nsecond\n");
  });
});
