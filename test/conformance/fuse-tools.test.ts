/** A FUSE export is a file to every program: those that copy, map, allocate, check and mount. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { attempt, run } from "../support/clients.ts";
import {
  allocatedBytes,
  assertFileIs,
  assertSameBytes,
  KiB,
  loopDevice,
  MiB,
  pattern,
  readAt,
  writeAt,
} from "../support/images.ts";
import { Random, randomSeed } from "../support/random.ts";
import {
  dataMap,
  type MountOptions,
  type MountScene,
  mountDisk as mountNode,
  python,
} from "./fuse-scene.ts";

setDefaultTimeout(180_000);

/** Two processes write to one mapping and look at what the other wrote. */
const SHARED_MAPPING = `
import mmap, os, subprocess, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
m = mmap.mmap(fd, 0)
want = bytes(range(256)) * 64
m[5000:5000 + len(want)] = want
child = "import mmap,os,sys; m = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0); " \\
    "sys.stdout.buffer.write(m[5000:5000 + 16384]); m[100000:100004] = b'back'; m.flush()"
got = subprocess.run([sys.executable, "-c", child, path], capture_output=True, check=True).stdout
assert got == want, "the other process sees other bytes"
assert m[100000:100004] == b"back"
m.flush()
`;

async function virtualBytes(disk: MountScene): Promise<number> {
  const nodes =
    await disk.qmp.execute<{ "node-name": string; image: { "virtual-size": number } }[]>(
      "query-named-block-nodes",
    );
  return nodes.find((node) => node["node-name"] === "disk")?.image["virtual-size"] ?? -1;
}

for (const filtered of [false, true]) {
  const mountDisk = (options: MountOptions = {}) => mountNode({ filtered, ...options });
  const kind = filtered ? "a filtered node" : "a plain file";
  describe(`copying programs, ${kind}`, () => {
    for (const flags of ["", "direct"]) {
      test(`dd reads and writes${flags === "" ? "" : ` with O_DIRECT`}`, async () => {
        await using disk = await mountDisk();
        const copy = disk.directory.file("copy");
        const input = flags === "" ? [] : [`iflag=${flags}`];
        await run("dd", [`if=${disk.mountpoint}`, `of=${copy}`, "bs=64k", ...input]);
        await assertFileIs(copy, disk.content);
        const other = pattern(disk.bytes, 2);
        await writeFile(copy, other);
        const output = flags === "" ? [] : [`oflag=${flags}`];
        const write = [`if=${copy}`, `of=${disk.mountpoint}`, "bs=256k", "conv=notrunc,fsync"];
        await run("dd", [...write, ...output]);
        await assertFileIs(disk.image, other);
      });
    }

    test("dd reads and writes pieces that begin and end anywhere", async () => {
      await using disk = await mountDisk();
      const piece = disk.directory.file("piece");
      const bytes = pattern(777 * 13, 3);
      await writeFile(piece, bytes);
      const target = [`of=${disk.mountpoint}`, "bs=777", "seek=1001", "conv=notrunc"];
      await run("dd", [`if=${piece}`, ...target]);
      bytes.copy(disk.content, 777 * 1001);
      await assertFileIs(disk.image, disk.content);
      await run("dd", [`if=${disk.mountpoint}`, `of=${piece}`, "bs=1021", "skip=700", "count=97"]);
      await assertFileIs(piece, disk.content.subarray(1021 * 700, 1021 * 797));
    });

    test("cp finds the holes and keeps them", async () => {
      await using disk = await mountDisk({ sparse: true, bytes: 64 * MiB });
      const part = pattern(MiB, 4);
      await writeAt(disk.image, 5 * MiB, part);
      const copy = disk.directory.file("copy");
      await run("cp", ["--sparse=auto", disk.mountpoint, copy]);
      expect((await stat(copy)).size).toBe(disk.bytes);
      expect(await allocatedBytes(copy)).toBeLessThanOrEqual(MiB + 64 * KiB);
      assertSameBytes(await readAt(copy, 5 * MiB, MiB), part);
    });

    test("cp --sparse=always onto a growable export replaces what was there", async () => {
      await using disk = await mountDisk({ export: "writable=on,growable=on" });
      const source = disk.directory.file("source");
      const content = Buffer.concat([
        pattern(64 * KiB, 5),
        Buffer.alloc(20 * MiB),
        pattern(64 * KiB, 6),
      ]);
      await writeFile(source, content);
      await run("cp", ["--sparse=always", source, disk.mountpoint]);
      await assertFileIs(disk.image, content);
      expect(await allocatedBytes(disk.image)).toBeLessThanOrEqual(MiB);
      expect(await virtualBytes(disk)).toBe(content.length);
    });
  });

  describe(`sizes and holes, ${kind}`, () => {
    test("fallocate punches and zeroes", async () => {
      await using disk = await mountDisk();
      const { content, image, mountpoint } = disk;
      const range = (offset: number, bytes: number) => [`-o${offset}`, `-l${bytes}`, mountpoint];
      const before = await allocatedBytes(image);
      await run("fallocate", ["--punch-hole", ...range(2 * MiB, 4 * MiB)]);
      content.fill(0, 2 * MiB, 6 * MiB);
      await assertFileIs(mountpoint, content);
      await assertFileIs(image, content);
      expect(await allocatedBytes(image)).toBeLessThanOrEqual(before - 4 * MiB);
      await run("fallocate", ["--zero-range", "--keep-size", ...range(8 * MiB + 100, 5000)]);
      content.fill(0, 8 * MiB + 100, 8 * MiB + 5100);
      await assertFileIs(mountpoint, content);
      await assertFileIs(image, content);
      for (const refused of ["--collapse-range", "--insert-range"]) {
        const outcome = await attempt("fallocate", [refused, ...range(MiB, MiB)]);
        expect(outcome.stderr).toContain("Operation not supported");
      }
      await assertFileIs(image, content);
    });

    test("truncate and fallocate make it longer and shorter", async () => {
      await using disk = await mountDisk({ export: "writable=on,growable=on" });
      const { content, image, mountpoint } = disk;
      await run("truncate", ["-s", "24M", mountpoint]);
      expect((await stat(mountpoint)).size).toBe(24 * MiB);
      expect(await virtualBytes(disk)).toBe(24 * MiB);
      await run("fallocate", [`-o${24 * MiB}`, `-l${MiB}`, mountpoint]);
      expect((await stat(mountpoint)).size).toBe(25 * MiB);
      await assertFileIs(image, Buffer.concat([content, Buffer.alloc(9 * MiB)]));
      await run("truncate", ["-s", "1M", mountpoint]);
      await assertFileIs(image, content.subarray(0, MiB));
      await assertFileIs(mountpoint, content.subarray(0, MiB));
      expect(await virtualBytes(disk)).toBe(MiB);
    });

    test("a write past the end makes a growable export longer", async () => {
      await using disk = await mountDisk({ bytes: MiB, export: "writable=on,growable=on" });
      const source = disk.directory.file("source");
      const piece = pattern(64 * KiB, 7);
      await writeFile(source, piece);
      const target = [`of=${disk.mountpoint}`, "bs=64k", "seek=17", "conv=notrunc,fsync"];
      await run("dd", [`if=${source}`, ...target]);
      const after = Buffer.concat([disk.content, Buffer.alloc(64 * KiB), piece]);
      await assertFileIs(disk.image, after);
      await assertFileIs(disk.mountpoint, after);
      expect(await virtualBytes(disk)).toBe(after.length);
    });

    test("a stream that is too long for the export fails at its end", async () => {
      await using disk = await mountDisk({ bytes: MiB });
      const source = disk.directory.file("source");
      const stream = pattern(MiB + 100 * KiB, 7);
      await writeFile(source, stream);
      const target = [`of=${disk.mountpoint}`, "bs=48k", "conv=notrunc,fsync"];
      const outcome = await attempt("dd", [`if=${source}`, ...target]);
      expect(outcome.code).toBe(1);
      expect(outcome.stderr).toContain(": No space left on device");
      await assertFileIs(disk.image, stream.subarray(0, MiB));
      await assertFileIs(disk.mountpoint, stream.subarray(0, MiB));
    });

    test("who writes beyond the end of an export that is not growable hears of it", async () => {
      await using disk = await mountDisk({ bytes: MiB });
      const target = [`of=${disk.mountpoint}`, "bs=64k", "seek=17", "count=1"];
      const outcome = await attempt("dd", ["if=/dev/zero", ...target, "conv=notrunc,fsync"]);
      expect(outcome.code).toBe(1);
      expect(outcome.stderr).toContain(": No space left on device");
      await assertFileIs(disk.mountpoint, disk.content);
      assertSameBytes(await readAt(disk.image, 0, MiB), disk.content);
    });

    test("SEEK_DATA and SEEK_HOLE tell what the image tells, wherever its holes are", async () => {
      await using disk = await mountDisk({ sparse: true, bytes: 32 * MiB });
      const random = new Random(randomSeed());
      for (let round = 0; round < 5; round++) {
        for (let i = 0; i < 8; i++) {
          const at = random.below(disk.bytes / (64 * KiB)) * 64 * KiB;
          await writeAt(
            disk.image,
            at,
            pattern(4 * KiB * (1 + random.below(64)), i + 1).subarray(0, disk.bytes - at),
          );
          const hole = random.below(disk.bytes / MiB) * MiB;
          await run("fallocate", ["--punch-hole", `-o${hole}`, "-l512K", disk.mountpoint]);
        }
        expect(await dataMap(disk.mountpoint)).toEqual(await dataMap(disk.image));
      }
    });
  });

  describe(`qemu-img and qemu-io, ${kind}`, () => {
    test("convert, compare, map and check what they wrote", async () => {
      await using disk = await mountDisk({ sparse: true, bytes: 32 * MiB });
      const source = disk.directory.file("source.qcow2");
      await run("qemu-img", ["create", "-f", "qcow2", source, "32M"]);
      await run("qemu-io", ["-c", "write -P 0x5a 3M 5M", "-c", "write -P 0xa5 20M 1M", source]);
      await run("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", source, disk.mountpoint]);
      await run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", source, disk.mountpoint]);
      await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", disk.image, disk.mountpoint]);
      const map = (path: string) => run("qemu-img", ["map", "-f", "raw", "--output=json", path]);
      expect(await map(disk.mountpoint)).toBe(await map(disk.image));
      const commands = ["write -P 1 1M 64k", "write -z 4M 1M", "discard 20M 1M", "flush"];
      const checks = [
        "read -P 1 1M 64k",
        "read -P 0 4M 1M",
        "read -P 0x5a 3M 1M",
        "read -P 0 20M 1M",
      ];
      const io = [...commands, ...checks].flatMap((command) => ["-c", command]);
      const said = await run("qemu-io", ["-f", "raw", "-d", "unmap", ...io, disk.mountpoint]);
      expect(said).not.toContain("Pattern verification failed");
      await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", disk.image, disk.mountpoint]);
    });
  });

  describe(`mmap, ${kind}`, () => {
    test("two processes share a mapping, and msync stores it", async () => {
      await using disk = await mountDisk();
      await python(SHARED_MAPPING, [disk.mountpoint]);
      const want = Buffer.from(Array.from({ length: 16_384 }, (_, i) => i % 256));
      want.copy(disk.content, 5000);
      disk.content.write("back", 100_000);
      await assertFileIs(disk.image, disk.content);
    });
  });

  describe(`fio with verify, ${kind}`, () => {
    const LOADS = {
      "four processes, psync": ["--ioengine=psync", "--numjobs=4"],
      "four processes, libaio with O_DIRECT": [
        ...["--ioengine=libaio", "--numjobs=4", "--direct=1", "--iodepth=16"],
      ],
      mmap: ["--ioengine=mmap"],
    };
    for (const [title, options] of Object.entries(LOADS)) {
      test(title, async () => {
        await using disk = await mountDisk({ sparse: true, bytes: 32 * MiB });
        await run("fio", [
          ...["--name=test", `--filename=${disk.mountpoint}`, "--rw=randwrite", "--bsrange=4k-64k"],
          ...["--size=8m", "--offset_increment=8m", "--fsync=64", "--group_reporting=1"],
          ...["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"],
          ...["--allow_file_create=0", ...options],
        ]);
        await assertFileIs(disk.mountpoint, await readFile(disk.image));
      });
    }
  });

  describe(`a file system in a loop device over the export, ${kind}`, () => {
    const KINDS = {
      ext4: {
        make: (device: string) => run("mke2fs", ["-q", "-t", "ext4", device]),
        check: (image: string) => run("e2fsck", ["-f", "-n", image]),
      },
      xfs: {
        make: (device: string) => run("mkfs.xfs", ["-q", device]),
        check: (image: string) => run("xfs_repair", ["-n", "-f", image]),
      },
    };
    for (const [kind, { make, check }] of Object.entries(KINDS)) {
      test(kind, async () => {
        await using disk = await mountDisk({ sparse: true, bytes: 320 * MiB });
        const target = disk.directory.file("target");
        await mkdir(target);
        const content = pattern(20 * MiB, 8);
        let before = 0;
        {
          await using loop = await loopDevice(disk.mountpoint);
          await make(loop.device);
          await run("mount", ["-t", kind, loop.device, target]);
          try {
            await writeFile(`${target}/kept`, content);
            await writeFile(`${target}/removed`, content);
            await run("umount", [target]);
            before = await allocatedBytes(disk.image);
            await run("mount", ["-t", kind, loop.device, target]);
            await assertFileIs(`${target}/kept`, content);
            await run("dd", ["if=/dev/null", `of=${target}/removed`]);
            await run("sync", ["--file-system", target]); // ext4 trims what is free for good.
            await run("fstrim", [target]);
          } finally {
            await run("umount", [target]);
          }
        }
        expect(await allocatedBytes(disk.image)).toBeLessThan(before - 19 * MiB);
        await check(disk.image);
      });
    }
  });
}
