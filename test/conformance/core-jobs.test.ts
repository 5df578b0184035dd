/** Images made by blockdev-create, and the jobs that make them. */

import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { readFile, stat, truncate, writeFile } from "node:fs/promises";
import { attempt, run } from "../support/clients.ts";
import {
  allocatedBytes,
  assertFileIs,
  GiB,
  KiB,
  MiB,
  pattern,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";

setDefaultTimeout(180_000);

interface JobInfo {
  readonly id: string;
  readonly status: string;
  readonly error?: string;
}

let directory: TemporaryDirectory;
let served: RunningDaemon;

beforeEach(async () => {
  directory = await temporaryDirectory();
  served = await startDaemon(directory.path, []);
});

afterEach(async () => {
  await served[Symbol.asyncDispose]();
  await directory[Symbol.asyncDispose]();
});

const execute = <T>(command: string, args?: Record<string, unknown>): Promise<T> =>
  served.qmp.execute<T>(command, args);
const said = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "success",
    (error: Error) => error.message,
  );
const start = (id: string, options: object): Promise<unknown> =>
  execute("blockdev-create", { "job-id": id, options });
const status = (id: string, what: string) =>
  served.qmp.event("JOB_STATUS_CHANGE", (data) => data.id === id && data.status === what);

/** Makes an image; what the job says of its failure, or "success". */
async function create(options: object): Promise<string> {
  await start("job", options);
  await status("job", "concluded");
  const [job] = await execute<JobInfo[]>("query-jobs");
  await execute("job-dismiss", { id: "job" });
  return job?.error ?? "success";
}

/** A node on a new empty file of the same name. */
async function addFile(name: string): Promise<string> {
  const filename = directory.file(name);
  await writeFile(filename, "");
  await execute("blockdev-add", { driver: "file", "node-name": name, filename });
  return filename;
}

const newFile = (size: number, more: object = {}) =>
  create({ driver: "file", filename: directory.file("new"), size, ...more });
const newQcow2 = (more: object = {}) =>
  create({ driver: "qcow2", file: "disk", size: MiB, ...more });

describe("blockdev-create of a file", () => {
  test("makes it as long as it is to be, and empties one that exists", async () => {
    const path = directory.file("new");
    expect(await newFile(MiB + 1)).toBe("success");
    const { size, mode } = await stat(path);
    expect([size, mode & 0o777]).toEqual([MiB + 1, 0o644]);
    await writeFile(path, pattern(64 * KiB));
    expect(await newFile(1000, { nocow: true, "extent-size-hint": 0 })).toBe("success");
    await assertFileIs(path, Buffer.alloc(1000));
  });

  test("keeps room for it", async () => {
    const path = directory.file("new");
    for (const preallocation of ["falloc", "full"]) {
      expect(await newFile(3 * MiB + 1, { preallocation })).toBe("success");
      expect((await stat(path)).size).toBe(3 * MiB + 1);
      expect(await allocatedBytes(path)).toBeGreaterThanOrEqual(3 * MiB);
    }
  });

  test("leaves nothing behind when it fails", async () => {
    const path = directory.file("new");
    expect(await newFile(2 ** 62)).toBe("Could not resize file: File too large");
    expect(existsSync(path)).toBe(false);
    const metadata = { preallocation: "metadata" };
    expect(await newFile(512, metadata)).toBe("Unsupported preallocation mode: metadata");
    expect(existsSync(path)).toBe(false);
    expect(await newFile(512, { "extent-size-hint": 2 ** 32 })).toBe(
      "Extent size hint is too large",
    );
    await writeFile(path, "");
    await newFile(512, metadata);
    expect(existsSync(path)).toBe(true);
    const filename = directory.file("none/new");
    expect(await create({ driver: "file", filename, size: 512 })).toBe(
      `Could not create '${filename}': No such file or directory`,
    );
  });

  test("leaves a file alone that somebody keeps from being resized", async () => {
    const image = await addFile("new");
    await writeFile(image, new Uint8Array(pattern(4096)));
    await execute("blockdev-add", { driver: "raw", "node-name": "raw", file: "new" });
    const addr = { type: "unix", data: { path: directory.file("nbd.sock") } };
    await execute("nbd-server-start", { addr });
    await execute("block-export-add", { type: "nbd", id: "e", "node-name": "raw" });
    expect(await newFile(512)).toBe('Failed to get "resize" lock');
    await assertFileIs(image, pattern(4096));
  });
});

describe("blockdev-create of a qcow2 image", () => {
  const VARIANTS: readonly (readonly [object, readonly string[]])[] = [
    [{}, []],
    [{ version: "v2" }, ["compat=0.10"]],
    [{ "cluster-size": 512 }, ["cluster_size=512"]],
    [{ "cluster-size": 2 * MiB }, ["cluster_size=2M"]],
    [{ "refcount-bits": 1 }, ["refcount_bits=1"]],
    [{ "refcount-bits": 64 }, ["refcount_bits=64"]],
    [{ "extended-l2": true }, ["extended_l2=on"]],
    [{ "lazy-refcounts": true }, ["lazy_refcounts=on"]],
    [{ "compression-type": "zstd" }, ["compression_type=zstd"]],
    [{ preallocation: "metadata" }, ["preallocation=metadata"]],
    [
      { preallocation: "metadata", "cluster-size": 512, "refcount-bits": 2 },
      ["preallocation=metadata,cluster_size=512,refcount_bits=2"],
    ],
    [{ preallocation: "metadata", "extended-l2": true }, ["preallocation=metadata,extended_l2=on"]],
    [{ preallocation: "falloc" }, ["preallocation=falloc"]],
    [{ preallocation: "full" }, ["preallocation=full"]],
  ];

  /** Without what need not be the same. */
  const infoOf = async (path: string): Promise<unknown> => {
    const info = JSON.parse(await run("qemu-img", ["info", "-U", "--output=json", path]));
    return { ...info, filename: "", "actual-size": 0, children: [] };
  };

  test("is as qemu-img makes it", async () => {
    const path = await addFile("disk");
    const theirs = directory.file("theirs");
    for (const [ours, options] of VARIANTS) {
      expect(await newQcow2({ ...ours, size: 21 * MiB + 512 })).toBe("success");
      const words = options.flatMap((option) => ["-o", option]);
      await run("qemu-img", ["create", "-q", "-f", "qcow2", ...words, theirs, `${21 * MiB + 512}`]);
      await run("qemu-img", ["check", "-U", "-q", path]);
      expect(await infoOf(path)).toEqual(await infoOf(theirs));
      await run("qemu-img", ["compare", "-q", "-U", path, theirs]);
      // Elsewhere the order of tables differs.
      if (Object.keys(ours).includes("preallocation")) continue;
      expect((await readFile(path)).equals(await readFile(theirs))).toBe(true);
    }
  });

  test("has the size of many refcount blocks", async () => {
    const path = await addFile("disk");
    expect(await newQcow2({ size: 64 * GiB, "cluster-size": 512 })).toBe("success");
    await run("qemu-img", ["check", "-U", "-q", path]);
    expect(await newQcow2({ size: 64 * GiB, preallocation: "metadata" })).toBe("success");
    await run("qemu-img", ["check", "-U", "-q", path]);
    expect(await allocatedBytes(path)).toBeLessThan(64 * MiB);
  });

  test("names its backing file and its data file", async () => {
    const path = await addFile("disk");
    const data = await addFile("data");
    const backing = { "backing-file": "base.raw", "backing-fmt": "raw" };
    expect(await newQcow2({ ...backing, "data-file": "data" })).toBe("success");
    expect(await infoOf(path)).toMatchObject({
      "backing-filename": "base.raw",
      "backing-filename-format": "raw",
      "format-specific": { data: { "data-file": data, "data-file-raw": false } },
    });
    expect((await stat(data)).size).toBe(MiB);
  });

  test("can be the tables of a raw disk that exists", async () => {
    const path = await addFile("disk");
    const data = await addFile("data");
    await writeFile(data, pattern(MiB + 512));
    await execute("blockdev-del", { "node-name": "data" });
    await execute("blockdev-add", { driver: "file", "node-name": "data", filename: data });
    const options = { "data-file": "data", "data-file-raw": true };
    expect(await newQcow2(options)).toBe("success");
    await run("qemu-img", ["check", "-U", "-q", path]);
    await assertFileIs(data, pattern(MiB + 512));
    await truncate(data, MiB);
    await run("qemu-img", ["compare", "-q", "-U", "-F", "raw", path, data]);
  });

  test("forgets what was in the file", async () => {
    const path = await addFile("disk");
    await writeFile(path, pattern(4 * MiB));
    await execute("blockdev-del", { "node-name": "disk" });
    await execute("blockdev-add", { driver: "file", "node-name": "disk", filename: path });
    expect(await newQcow2({ preallocation: "metadata" })).toBe("success");
    const raw = directory.file("raw");
    await run("qemu-img", ["convert", "-U", "-O", "raw", path, raw]);
    await assertFileIs(raw, Buffer.alloc(MiB));
  });

  test("is opened, exported and written to", async () => {
    expect(await newFile(0)).toBe("success");
    const path = directory.file("new");
    const file = { driver: "file", filename: path };
    expect(await newQcow2({ file, size: 64 * MiB })).toBe("success");
    await execute("blockdev-add", { driver: "qcow2", "node-name": "q", file });
    const socket = directory.file("nbd.sock");
    await execute("nbd-server-start", { addr: { type: "unix", data: { path: socket } } });
    const options = { type: "nbd", id: "e", "node-name": "q", name: "q", writable: true };
    await execute("block-export-add", options);
    const client = await NbdClient.open({ path: socket }, { exportName: "q", mode: "simple" });
    await client.write(5 * MiB + 512, pattern(3 * MiB));
    expect(await client.read(5 * MiB + 512, 3 * MiB)).toEqual(pattern(3 * MiB));
    await client.flush();
    await client.disconnect();
    await execute("block-export-del", { id: "e", mode: "hard" });
    await served.qmp.event("BLOCK_EXPORT_DELETED");
    await execute("blockdev-del", { "node-name": "q" });
    await run("qemu-img", ["check", "-q", path]);
    const pattern0 = await attempt("qemu-io", ["-r", "-c", `read -P 0 0 5M`, path]);
    expect(pattern0.stdout).not.toContain("failed");
  });

  test("says why it can't be made", async () => {
    await addFile("disk");
    const more = "compatibility level 1.1 and above (use version=v3 or greater)";
    const cases: readonly (readonly [object, string])[] = [
      [{ size: 513 }, "Image size must be a multiple of 512 bytes"],
      [{ size: 2 ** 62 }, "Could not resize image: Failed to grow the L1 table: File too large"],
      [{ "cluster-size": 0 }, "Cluster size must be a power of two between 512 and 2048k"],
      [
        { "cluster-size": 8192, "extended-l2": true },
        "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
      ],
      [{ version: "v2", "lazy-refcounts": true }, `Lazy refcounts only supported with ${more}`],
      [{ "refcount-bits": 3 }, "Refcount width must be a power of two and may not exceed 64 bits"],
      [{ "backing-fmt": "raw" }, "Backing format cannot be used without backing file"],
      [{ "data-file-raw": true }, "data-file-raw requires data-file"],
      [{ encrypt: { format: "luks" } }, "Parameter 'encrypt.key-secret' is required for cipher"],
      [{ file: "none" }, "Cannot find device='none' nor node-name='none'"],
      [{ file: { driver: "null-co" } }, "Image is not in qcow2 format"],
      [
        { file: { driver: "file", filename: directory.file("disk"), "read-only": true } },
        "Block node is read-only",
      ],
    ];
    for (const [options, message] of cases) expect(await newQcow2(options)).toBe(message);
    await newQcow2();
    await execute("blockdev-add", { driver: "qcow2", "node-name": "q", file: "disk" });
    expect(await newQcow2()).toBe(
      "Permission conflict on node 'disk': permissions 'write, resize' are both required by an " +
        "unnamed block device (uses node 'disk' as 'root' child) and unshared by node 'q' " +
        "(uses node 'disk' as 'file' child).",
    );
    // It has let go of all that it had.
    await execute("blockdev-del", { "node-name": "q" });
    expect(await newQcow2()).toBe("success");
    await execute("blockdev-del", { "node-name": "disk" });
  });
});

describe("jobs", () => {
  const huge = () => ({
    driver: "file",
    filename: directory.file("huge"),
    size: 512 * GiB,
    preallocation: "full",
  });

  test("tell of every step", async () => {
    await start("job", { driver: "file", filename: directory.file("new"), size: 512 });
    for (const step of ["created", "running", "waiting", "pending", "concluded"]) {
      await status("job", step);
    }
    expect(await execute("query-jobs")).toEqual([
      {
        id: "job",
        type: "create",
        status: "concluded",
        "current-progress": 1,
        "total-progress": 1,
      },
    ]);
    const busy = said(start("job", { driver: "file", filename: "x", size: 0 }));
    expect(await busy).toContain("Job ID 'job' already in use");
    await execute("job-dismiss", { id: "job" });
    await status("job", "null");
    expect(await execute("query-jobs")).toEqual([]);
    expect(await said(execute("job-dismiss", { id: "job" }))).toContain("Job not found");
  });

  test("end when they are cancelled, and leave nothing behind", async () => {
    await start("job", huge());
    while ((await allocatedBytes(directory.file("huge")).catch(() => 0)) === 0) await sleep(5);
    const early = said(execute("job-dismiss", { id: "job" }));
    expect(await early).toContain("Job 'job' in state 'running' cannot accept command verb");
    await execute("job-cancel", { id: "job" });
    await status("job", "aborting");
    await status("job", "concluded");
    const [job] = await execute<JobInfo[]>("query-jobs");
    expect(job?.error).toBe("Operation canceled");
    expect(existsSync(directory.file("huge"))).toBe(false);
  });

  test("let an image be none when they are cancelled, and the node free", async () => {
    const path = await addFile("disk");
    const size = 256 * GiB;
    await start("job", { driver: "qcow2", file: "disk", size, preallocation: "full" });
    while ((await allocatedBytes(path)) === 0) await sleep(5);
    const busy = said(execute("blockdev-del", { "node-name": "disk" }));
    expect(await busy).toContain("Node disk is in use");
    await execute("job-cancel", { id: "job" });
    await status("job", "concluded");
    await execute("blockdev-del", { "node-name": "disk" });
    expect((await stat(path)).size).toBe(0);
  });

  test("do not outlive the daemon", async () => {
    await start("job", huge());
    await status("job", "running");
    await execute("quit");
    await status("job", "null");
    await served.daemon.exitSoon();
    expect(existsSync(directory.file("huge"))).toBe(false);
  });
});
