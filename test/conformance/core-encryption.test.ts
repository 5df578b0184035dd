/**
 * Encrypted qcow2 images: those of qemu-img used by outport, and those of outport used by qemu-img,
 * under concurrent random requests over NBD; what is said of them, and who does not get in.
 * OUTPORT_SEED repeats a run.
 */
import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from "bun:test";
import { copyFile, readFile, truncate, writeFile } from "node:fs/promises";
import {
  LUKS_HEADER_KEY_BYTES,
  LUKS_HEADER_KEY_SLOTS,
  LUKS_HEADER_PAYLOAD_OFFSET,
  LUKS_SLOT_ITERATIONS,
} from "../../src/abi/luks.ts";
import { attempt, run } from "../support/clients.ts";
import {
  assertSameBytes,
  KiB,
  MiB,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { type Mode, NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";
import { Random, randomSeed } from "../support/random.ts";
import { DiskModel } from "./disk-model.ts";

setDefaultTimeout(60_000);

const PASSPHRASE = "Maulwurfshügel";
const SECRET = ["--object", `secret,id=key,data=${PASSPHRASE}`];
/** Of qemu-img create and convert. */
const ENCRYPTED = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
const ENCRYPT = { format: "luks", "key-secret": "key" };
const MODES: readonly Mode[] = ["simple", "structured"];
const OPERATIONS = 100;
const DEPTH = 4;

const seed = randomSeed();
let folder: TemporaryDirectory;
let daemon: RunningDaemon;
let count = 0;

beforeEach(async () => {
  folder = await temporaryDirectory();
  daemon = await startDaemon(folder.path, [
    ...SECRET,
    ...["--nbd-server", `addr.type=unix,addr.path=${folder.file("nbd.sock")}`],
    ...["--object", "iothread,id=io0", "--object", "secret,id=wrong,data=Maulwurf"],
    ...["--object", "throttle-group,id=group", "--object", "secret,id=raw,format=base64,data=/w=="],
  ]);
});

afterEach(async () => {
  expect(daemon.daemon.stderr).not.toContain(PASSPHRASE);
  await daemon[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

const execute = <T>(command: string, args?: Record<string, unknown>): Promise<T> =>
  daemon.qmp.execute<T>(command, args);
const said = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "success",
    (error: Error) => error.message,
  );

const optionsOf = (path: string, encrypt: object | undefined = ENCRYPT, name = "disk") => ({
  ...{ driver: "qcow2", "node-name": name, discard: "unmap" },
  file: { driver: "file", filename: path, discard: "unmap" },
  ...(encrypt === undefined ? {} : { encrypt }),
});
const add = (path: string, encrypt?: object, more: object = {}) =>
  execute("blockdev-add", { ...optionsOf(path, encrypt), ...more });
const remove = () => execute("blockdev-del", { "node-name": "disk" });

/** Arguments for qemu-img and qemu-io: an image with its key, or a raw file. */
const withKey = (path: string) => [
  ...SECRET,
  ...["--image-opts", `driver=qcow2,encrypt.key-secret=key,file.filename=${path}`],
];

/** What QEMU reads of the image. */
async function contentOf(path: string): Promise<Buffer> {
  const raw = `${path}.raw`;
  await run("qemu-img", ["convert", ...withKey(path), "-O", "raw", raw]);
  return readFile(raw);
}

async function check(path: string, content: Uint8Array): Promise<void> {
  await run("qemu-img", ["check", "-q", ...withKey(path)]);
  assertSameBytes(await contentOf(path), content, "the image");
}

/** A client of the node. */
async function exported(): Promise<NbdClient> {
  await execute("block-export-add", {
    type: "nbd",
    id: "one",
    "node-name": "disk",
    writable: true,
  });
  return NbdClient.open({ path: folder.file("nbd.sock") }, { exportName: "disk" });
}

async function unexported(): Promise<void> {
  await execute("block-export-del", { id: "one", mode: "hard" });
  await daemon.qmp.event("BLOCK_EXPORT_DELETED", (one) => one.id === "one");
}

/** Exports the node and does random requests, of which `content` is the start. */
async function load(random: Random, content: Buffer): Promise<Buffer> {
  const id = `export${count++}`;
  await execute("block-export-add", {
    ...{ type: "nbd", id, "node-name": "disk", writable: true },
    ...(count % 2 === 0 ? { iothread: "io0" } : {}),
  });
  const address = { path: folder.file("nbd.sock") };
  const clients = await Promise.all(
    MODES.map((mode) => NbdClient.open(address, { exportName: "disk", mode })),
  );
  const model = new DiskModel(content, random.u32());
  await model.run(clients, OPERATIONS, DEPTH);
  assertSameBytes(await clients[0]!.read(0, content.length), model.content, "the export");
  await Promise.all(clients.map((client) => client.disconnect()));
  await execute("block-export-del", { id, mode: "hard" });
  await daemon.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === id);
  return model.content;
}

/** Runs the job; what it says of its failure, or "success". */
async function jobSays(id: string, options: object): Promise<string> {
  await execute("blockdev-create", { "job-id": id, options });
  const isOver = (data: Record<string, unknown>) => data.id === id && data.status === "concluded";
  await daemon.qmp.event("JOB_STATUS_CHANGE", isOver);
  const jobs = await execute<{ id: string; error?: string }[]>("query-jobs");
  for (const one of jobs) await execute("job-dismiss", { id: one.id });
  return jobs.find((one) => one.id === id)?.error ?? "success";
}

/** Makes an image; what the job says of its failure, or "success". */
async function create(options: object, encrypt: object, name = "made"): Promise<string> {
  const file = { driver: "file", filename: folder.file(`${name}.qcow2`) };
  await jobSays("file", { ...file, size: 0 });
  return jobSays("image", {
    ...{ driver: "qcow2", file, size: 2 * MiB },
    ...options,
    encrypt: { format: "luks", "iter-time": 10, ...encrypt },
  });
}

const TEXT = "No disk shows this in clear text, whoever looks at it.";

/** qemu-img, which on a busy machine may fail to find out how busy it is. */
async function makeImage(path: string, options: string): Promise<void> {
  const how = ["-q", ...SECRET, "-f", "qcow2", "-o", `${ENCRYPTED},${options}`];
  for (let tries = 0; tries < 10; tries++) {
    const outcome = await attempt("qemu-img", ["create", ...how, path, "2M"]);
    if (outcome.code === 0) return;
    if (!outcome.stderr.includes("Unable to get accurate CPU usage")) throw outcome.stderr;
  }
  throw new Error("qemu-img can't measure itself");
}

/** As qemu-img makes it: once, as it tries for long how many iterations are enough. */
let usual: string;
let made: TemporaryDirectory;

beforeAll(async () => {
  made = await temporaryDirectory();
  usual = made.file("usual.qcow2");
  await makeImage(usual, "lazy_refcounts=on");
});

afterAll(() => made[Symbol.asyncDispose]());

describe("encrypted images made by qemu-img", () => {
  test("the usual one, with compressed clusters and a snapshot", async () => {
    const path = folder.file("image.qcow2");
    await copyFile(usual, path);
    await run("qemu-io", [...withKey(path), "-c", "write -c -P 5 512k 192k"]);
    await run("qemu-io", [...withKey(path), "-c", "write -P 9 300k 100k"]);
    await run("qemu-img", ["snapshot", "-c", "before", ...withKey(path)]);
    const before = await contentOf(path);
    await add(path);
    const after = await load(new Random(seed), before);
    await remove();
    await check(path, after);
  });

  test("version 2, small clusters, AES-128 and SHA-1", async () => {
    const path = folder.file("image.qcow2");
    const cipher = "encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha1";
    await makeImage(path, `compat=0.10,cluster_size=512,${cipher}`);
    await add(path);
    const after = await load(new Random(seed), Buffer.alloc(2 * MiB));
    await remove();
    await check(path, after);
  });
});

describe("encrypted images made by outport", () => {
  const kinds = [
    { name: "the usual one", options: {}, encrypt: {} },
    { name: "version 2", options: { version: "v2" }, encrypt: { "cipher-alg": "aes-128" } },
    { name: "small clusters", options: { "cluster-size": 512 }, encrypt: { "hash-alg": "sha1" } },
    {
      name: "subclusters, preallocated",
      options: { "extended-l2": true, "cluster-size": 16384, preallocation: "metadata" },
      encrypt: { "hash-alg": "sha512", "ivgen-alg": "plain64", "ivgen-hash-alg": "sha1" },
    },
    { name: "preallocated", options: { preallocation: "full" }, encrypt: {} },
    { name: "large clusters", options: { "cluster-size": 2 * MiB }, encrypt: {} },
  ];
  for (const { name, options, encrypt } of kinds) {
    test(name, async () => {
      expect(await create(options, { "key-secret": "key", ...encrypt })).toBe("success");
      const path = folder.file("made.qcow2");
      await run("qemu-img", ["info", path]);
      const before = await contentOf(path);
      await run("qemu-img", ["check", "-q", ...withKey(path)]);
      await run("qemu-io", [...withKey(path), "-c", "write -P 3 64k 200k"]);
      before.fill(3, 64 * KiB, 264 * KiB);
      await add(path);
      const after = await load(new Random(seed), before);
      await remove();
      await check(path, after);
    });
  }

  test("subclusters over an encrypted backing file", async () => {
    const key = { "key-secret": "key" };
    const [base, path] = [folder.file("base.qcow2"), folder.file("made.qcow2")];
    expect(await create({ "cluster-size": 4096 }, key, "base")).toBe("success");
    await run("qemu-io", [...withKey(base), "-c", "write -P 7 100k 600k"]);
    const behind = { "backing-file": base, "backing-fmt": "qcow2" };
    expect(await create({ "extended-l2": true, ...behind }, key)).toBe("success");
    await add(path, ENCRYPT, { backing: optionsOf(base, ENCRYPT, "base") });
    const before = Buffer.alloc(2 * MiB).fill(7, 100 * KiB, 700 * KiB);
    const after = await load(new Random(seed), before);
    await remove();
    const backing = `backing.encrypt.key-secret=key,backing.file.filename=${base}`;
    const image = withKey(path).with(-1, `${withKey(path).at(-1)},${backing}`);
    await run("qemu-img", ["check", "-q", ...image]);
    await run("qemu-img", ["convert", ...image, "-O", "raw", `${path}.raw`]);
    assertSameBytes(await readFile(`${path}.raw`), after, "the image");
  });

  test("a data file", async () => {
    const [path, data] = [folder.file("made.qcow2"), folder.file("data")];
    await writeFile(data, "");
    const dataFile = { "data-file": { driver: "file", filename: data } };
    expect(await create(dataFile, { "key-secret": "key" })).toBe("success");
    await add(path);
    const after = await load(new Random(seed), Buffer.alloc(2 * MiB));
    await remove();
    await check(path, after);
  });

  test("take nothing away while their keys are being made", async () => {
    const path = folder.file("made.qcow2");
    await writeFile(path, TEXT);
    const encrypt = { format: "luks", "key-secret": "key", "iter-time": 20_000 };
    const options = { driver: "qcow2", file: { driver: "file", filename: path }, size: MiB };
    await execute("blockdev-create", { "job-id": "one", options: { ...options, encrypt } });
    await execute("job-cancel", { id: "one" });
    await daemon.qmp.event("JOB_STATUS_CHANGE", ({ status }) => status === "concluded");
    const jobs = await execute<{ error: string }[]>("query-jobs");
    expect(jobs.map(({ error }) => error)).toEqual(["Operation canceled"]);
    expect(await readFile(path, "utf8")).toBe(TEXT);
  });

  test("are not made of what nobody could open", async () => {
    const refuse = async (encrypt: object, message: string) => {
      expect(await create({}, encrypt)).toBe(message);
    };
    const key = { "key-secret": "key" };
    await refuse({}, "Parameter 'encrypt.key-secret' is required for cipher");
    await refuse({ "key-secret": "none" }, "No secret with id 'none'");
    await refuse({ "key-secret": "raw" }, "Data from secret raw is not valid UTF-8");
    await refuse({ ...key, "cipher-alg": "3des" }, "Algorithm '3des' not supported");
    await refuse({ ...key, "cipher-alg": "twofish-256" }, "Algorithm 'twofish-256' not supported");
    await refuse({ ...key, "cipher-mode": "ctr" }, "Unsupported cipher mode ctr");
    const qcow = { format: "qcow", "key-secret": "key", "iter-time": undefined };
    await refuse(qcow, "Encryption format 'qcow' is not supported");
    expect(await create({}, { ...key, "iter-time": -1 })).toContain("too large to scale");
  });
});

describe("a LUKS volume", () => {
  const luks = (path: string, header?: string) => ({
    ...{ driver: "luks", "node-name": "disk", "key-secret": "key" },
    file: { driver: "file", filename: path },
    ...(header === undefined ? {} : { header: { driver: "file", filename: header } }),
  });
  /** What QEMU reads of it. */
  const contentOfVolume = async (path: string): Promise<Buffer> => {
    const image = ["--image-opts", `driver=luks,key-secret=key,file.filename=${path}`];
    await run("qemu-img", ["convert", ...SECRET, ...image, "-O", "raw", `${path}.raw`]);
    return readFile(`${path}.raw`);
  };
  const makeVolume = async (options: object): Promise<string> => {
    return jobSays("volume", { driver: "luks", "key-secret": "key", "iter-time": 10, ...options });
  };

  test("is made, written and resized, as qemu-img sees it", async () => {
    const path = folder.file("volume.luks");
    await writeFile(path, Buffer.alloc(3 * MiB, 0xa5));
    expect(await makeVolume({ file: { driver: "file", filename: path }, size: MiB })).toBe(
      "success",
    );
    const before = await contentOfVolume(path);
    expect(before.length).toBe(MiB);
    await execute("blockdev-add", luks(path));
    let content = await load(new Random(seed), before);
    await execute("block_resize", { "node-name": "disk", size: MiB / 2 });
    content = await load(new Random(seed + 1), content.subarray(0, MiB / 2));
    await remove();
    assertSameBytes(await contentOfVolume(path), content);
  });

  test("may have its header elsewhere", async () => {
    const [path, header] = [folder.file("payload"), folder.file("header.luks")];
    await writeFile(path, "");
    const places = {
      file: { driver: "file", filename: path },
      header: { driver: "file", filename: header },
    };
    await writeFile(header, "");
    expect(await makeVolume({ ...places, size: MiB })).toBe("success");
    await execute("blockdev-add", luks(path, header));
    const client = await exported();
    const before = await client.read(0, MiB);
    await client.disconnect();
    await unexported();
    const content = await load(new Random(seed), Buffer.from(before));
    await remove();
    // Older ones of QEMU know volumes only as a whole, with the payload where the header says.
    const whole = folder.file("whole.luks");
    const first = await readFile(header);
    first.writeUInt32BE(first.length / 512, LUKS_HEADER_PAYLOAD_OFFSET);
    await writeFile(whole, Buffer.concat([first, await readFile(path)]));
    assertSameBytes(await contentOfVolume(whole), content);
  });

  test("opens for nobody else", async () => {
    const path = folder.file("volume.luks");
    await writeFile(path, "");
    expect(await makeVolume({ file: { driver: "file", filename: path }, size: MiB })).toBe(
      "success",
    );
    const open = (more: object) => said(execute("blockdev-add", { ...luks(path), ...more }));
    expect(await open({ "key-secret": undefined })).toBe(
      "Parameter 'key-secret' is required for cipher",
    );
    expect(await open({ "key-secret": "wrong" })).toBe(
      "Invalid password, cannot unlock any keyslot",
    );
    expect(await open({ "key-secret": "none" })).toBe("No secret with id 'none'");
    expect(await open({ file: { driver: "null-co", "read-zeroes": true } })).toBe(
      "Volume is not in LUKS format",
    );
    await truncate(path, 2 * MiB - 4 * KiB - 30 * KiB);
    expect(await open({})).toBe("Could not refresh total sector count: Input/output error");
    expect(await makeVolume({ size: MiB })).toBe(
      "Either the parameter 'header' or 'file' must be specified",
    );
  });
});

describe("an encrypted image", () => {
  let path: string;
  beforeEach(async () => {
    path = folder.file("kept.qcow2");
    await copyFile(usual, path);
  });

  test("opens for nobody else", async () => {
    const plain = folder.file("plain.qcow2");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", plain, "1M"]);
    const required = "Parameter 'encrypt.key-secret' is required for cipher";
    const luks = { format: "luks" };
    const cases: readonly (readonly [string, object | undefined, string])[] = [
      [path, {}, "Parameter 'encrypt.format' is missing"],
      [path, luks, required],
      [path, { format: "aes", "key-secret": "key" }, "Header reported 'luks' encryption format"],
      [path, { ...luks, "key-secret": "none" }, "No secret with id 'none'"],
      [path, { ...luks, "key-secret": "group" }, "Object with id 'group' is not a secret"],
      [path, { ...luks, "key-secret": "raw" }, "Data from secret raw is not valid UTF-8"],
      [path, { ...luks, "key-secret": "wrong" }, "Invalid password, cannot unlock any keyslot"],
      [plain, luks, "No encryption in image header, but options specified format 'luks'"],
    ];
    for (const [image, encrypt, message] of cases) {
      expect(await said(add(image, encrypt))).toContain(message);
    }
    const without = { ...optionsOf(path), encrypt: undefined };
    expect(await said(execute("blockdev-add", without))).toBe(required);
    const overlay = folder.file("overlay.qcow2");
    const how = ["-q", "-u", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay, "4M"];
    await run("qemu-img", ["create", ...how]);
    const over = { ...optionsOf(overlay), encrypt: undefined };
    expect(await said(execute("blockdev-add", over))).toBe(
      `Could not open backing file: ${required}`,
    );
  });

  test("refuses the old encryption, whose data can be found out", async () => {
    const old = folder.file("aes.qcow2");
    const aes = "encrypt.format=aes,encrypt.key-secret=key";
    await run("qemu-img", ["create", "-q", ...SECRET, "-f", "qcow2", "-o", aes, old, "1M"]);
    const message = "Encryption format 'aes' is not supported";
    expect(await said(add(old, { format: "aes", "key-secret": "key" }))).toBe(message);
  });

  test("with a broken header is refused, whatever is in it", async () => {
    const broken = folder.file("broken.qcow2");
    const image = await readFile(path);
    // As qemu-img lays it out: header, refcount table and block, L1 table.
    const luks = 4 * 65536;
    image.writeUInt32BE(0xffff_ffff, luks + LUKS_HEADER_KEY_BYTES);
    await writeFile(broken, image);
    expect(await said(add(broken))).toBe("Keyslot 0 is overlapping with the encrypted payload");
    image.write("LUCK", luks);
    await writeFile(broken, image);
    expect(await said(add(broken))).toBe("Volume is not in LUKS format");
  });

  test("does not keep the daemon from ending while its key is looked for", async () => {
    const image = await readFile(path);
    const slot = 4 * 65536 + LUKS_HEADER_KEY_SLOTS;
    image.writeUInt32BE(100_000_000, slot + LUKS_SLOT_ITERATIONS);
    await writeFile(path, image);
    add(path).catch(() => {});
    await sleep(300);
    const start = performance.now();
    expect(await daemon.daemon.stop()).toBe(0);
    expect(performance.now() - start).toBeLessThan(8000);
  });

  test("tells of itself what qemu-img tells", async () => {
    await add(path);
    type Info = { encrypted: boolean; "format-specific": { data: { encrypt: object } } };
    const nodes =
      await execute<{ encrypted: boolean; file: string; image: Info }[]>("query-named-block-nodes");
    await remove();
    const node = nodes[0]!;
    const info = JSON.parse(await run("qemu-img", ["info", "--output=json", path])) as Info;
    expect([node.encrypted, node.image.encrypted, info.encrypted]).toEqual([true, true, true]);
    const { encrypt } = node.image["format-specific"].data;
    // Older ones don't know of headers elsewhere.
    const told = { "detached-header": false, ...info["format-specific"].data.encrypt };
    expect(encrypt).toEqual(told);
    expect(node.file).toStartWith('json:{"encrypt.key-secret": "key", "driver": "qcow2"');
  });

  test("shows nobody what is in it", async () => {
    await add(path);
    const client = await exported();
    const data = Buffer.from(TEXT.repeat(2000)).subarray(0, 64 * KiB);
    await client.write(0, data, 0);
    await client.write(100 * KiB, data.subarray(0, 5000), 0);
    assertSameBytes(await client.read(0, data.length), data);
    await client.flush();
    await client.disconnect();
    await unexported();
    await remove();
    expect((await readFile(path)).includes(TEXT.slice(0, 16))).toBe(false);
    assertSameBytes((await contentOf(path)).subarray(0, data.length), data);
  });

  test("stays open when its secret is gone, also elsewhere and after a change", async () => {
    await execute("object-add", { "qom-type": "secret", id: "once", data: PASSPHRASE });
    const encrypt = { ...ENCRYPT, "key-secret": "once" };
    await add(path, encrypt);
    await execute("object-del", { id: "once" });
    let content = await load(new Random(seed), Buffer.alloc(2 * MiB));
    await execute("blockdev-set-active", { "node-name": "disk", active: false });
    await execute("blockdev-set-active", { "node-name": "disk", active: true });
    content = await load(new Random(seed + 1), content);
    await execute("x-blockdev-set-iothread", { "node-name": "disk", iothread: "io0" });
    content = await load(new Random(seed + 2), content);
    const reopen = (given: object | undefined) =>
      said(execute("blockdev-reopen", { options: [{ ...optionsOf(path), encrypt: given }] }));
    expect(await reopen({ ...ENCRYPT, "key-secret": "none" })).toBe("success");
    expect(await reopen({ format: "luks" })).toBe(
      "Option 'encrypt.key-secret' cannot be reset to its default value",
    );
    expect(await reopen(undefined)).toBe(
      "Option 'encrypt.format' cannot be reset to its default value",
    );
    expect(await reopen({ format: "aes", "key-secret": "none" })).toStartWith(
      "Header reported 'luks' encryption format",
    );
    await execute("block_resize", { "node-name": "disk", size: 5 * MiB });
    content = Buffer.concat([content, Buffer.alloc(3 * MiB)]);
    const after = await load(new Random(seed + 3), content);
    await remove();
    await check(path, after);
  });
});
