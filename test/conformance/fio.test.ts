/** fio's nbd engine checks every block that it wrote. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { run } from "../support/clients.ts";
import { MiB } from "../support/images.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

interface FioResult {
  readonly jobs: readonly {
    readonly error: number;
    readonly read: { readonly total_ios: number };
    readonly write: { readonly total_ios: number };
  }[];
}

async function fio(uri: string, ...options: string[]): Promise<FioResult> {
  const job = [
    "--name=test",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--output-format=json",
    "--verify_state_save=0",
  ];
  const all = [...job, "--verify_fatal=1", ...options];
  const printed = await run("fio", all);
  return JSON.parse(printed.slice(printed.indexOf("{"))) as FioResult;
}

const CASES = [
  ["random 4k writes at depth 64", ["--rw=randwrite", "--bs=4k", "--iodepth=64", "--size=16m"]],
  [
    "mixed sizes and directions",
    ["--rw=randrw", "--bsrange=512-128k", "--blockalign=512", "--iodepth=16", "--size=16m"],
  ],
  ["1 MiB sequential writes", ["--rw=write", "--bs=1m", "--iodepth=8", "--size=32m"]],
] as const;

describe("fio with verify", () => {
  for (const [title, options] of CASES) {
    test(title, async () => {
      await using disk = await serve({ bytes: 32 * MiB, sparse: true });
      const result = await fio(disk.uri, ...options, "--verify=crc32c", "--do_verify=1");
      expect(result.jobs[0]?.error).toBe(0);
      expect(result.jobs[0]?.write.total_ios).toBeGreaterThan(30);
    });
  }

  test("four jobs on four connections, each in its part, with syncs and trims", async () => {
    await using disk = await serve({
      bytes: 32 * MiB,
      sparse: true,
      file: "discard=unmap",
      raw: "discard=unmap",
    });
    const parts = ["--numjobs=4", "--size=8m", "--offset_increment=8m", "--group_reporting=1"];
    const load = ["--rw=randwrite", "--bs=8k", "--iodepth=16", "--fsync=32"];
    const result = await fio(disk.uri, ...parts, ...load, "--verify=md5", "--do_verify=1");
    expect(result.jobs[0]?.error).toBe(0);
    const trims = ["--rw=randtrim", "--bs=64k", "--size=32m", "--iodepth=8"];
    expect((await fio(disk.uri, ...trims)).jobs[0]?.error).toBe(0);
  });
});
