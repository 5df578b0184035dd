/** Who may do what with a FUSE export: modes, owners, other users, read-only exports. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmod, chown, mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import { assertFileIs, MiB, patternImage } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { inOpenNamespace, mountDirectory, mountDisk, nodeArguments } from "./fuse-scene.ts";

setDefaultTimeout(180_000);

const NOBODY = 65_534;
const AS_NOBODY = ["setpriv", `--reuid=${NOBODY}`, `--regid=${NOBODY}`, "--clear-groups"] as const;
const BYTES = MiB;

/** The same user, who finds the daemon even where the tests lie in a private directory. */
const AS_USER = [
  ...AS_NOBODY,
  ...["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"],
] as const;

/** "ok", or the words of the errno. */
async function outcomeOf(call: string, path: string, prefix: readonly string[] = []) {
  const script = `
import fcntl, os, sys
path = sys.argv[1]
try:
    ${call}
    print("ok")
except OSError as error:
    print(error.strerror)
`;
  const [program, ...args] = [...prefix, "python3", "-c", script, path];
  return (await run(program as "nsenter" | "python3" | "setpriv", args)).trim();
}

const nobodys = (call: string, path: string) => outcomeOf(call, path, AS_NOBODY);
const READ = "open(path, 'rb').read(4096)";
const WRITE = "os.pwrite(os.open(path, os.O_WRONLY), b'nobody', 0)";
const PERMITTED = "Operation not permitted";
const DENIED = "Permission denied";

describe("other users, allowed", () => {
  for (const allowed of ["", ",allow-other=auto", ",allow-other=on"]) {
    test(`by the mode and the owner: writable=on${allowed}`, async () => {
      await using disk = await mountDisk({ bytes: BYTES, export: `writable=on${allowed}` });
      const { mountpoint } = disk;
      expect((await stat(mountpoint)).mode & 0o7777).toBe(0o600);
      expect(await nobodys("os.stat(path)", mountpoint)).toBe("ok");
      expect(await nobodys(READ, mountpoint)).toBe(DENIED);
      await chmod(mountpoint, 0o644);
      expect(await nobodys(READ, mountpoint)).toBe("ok");
      expect(await nobodys(WRITE, mountpoint)).toBe(DENIED);
      await chmod(mountpoint, 0o666);
      expect(await nobodys(WRITE, mountpoint)).toBe("ok");
      await chmod(mountpoint, 0o600);
      expect(await nobodys("os.chmod(path, 0o666)", mountpoint)).toBe(PERMITTED);
      expect(await outcomeOf(`os.chown(path, ${NOBODY}, ${NOBODY})`, mountpoint)).toBe("ok");
      expect(await stat(mountpoint)).toMatchObject({ uid: NOBODY, gid: NOBODY });
      expect(await nobodys(WRITE, mountpoint)).toBe("ok");
      expect((await readFile(disk.image)).toString("latin1", 0, 6)).toBe("nobody");
    });
  }
});

describe("other users, not allowed", () => {
  test("see nothing, and the mode and the owner cannot let them in", async () => {
    await using disk = await mountDisk({ bytes: BYTES, export: "writable=on,allow-other=off" });
    const { mountpoint } = disk;
    expect(await nobodys("os.stat(path)", mountpoint)).toBe(DENIED);
    expect(await nobodys(READ, mountpoint)).toBe(DENIED);
    for (const mode of ["0o640", "0o604", "0o666"]) {
      expect(await outcomeOf(`os.chmod(path, ${mode})`, mountpoint)).toBe(PERMITTED);
    }
    expect(await outcomeOf("os.chmod(path, 0o700)", mountpoint)).toBe("ok");
    expect((await stat(mountpoint)).mode & 0o7777).toBe(0o700);
    const refused = "Operation not supported";
    expect(await outcomeOf(`os.chown(path, ${NOBODY}, -1)`, mountpoint)).toBe(refused);
    expect(await outcomeOf(`os.chown(path, -1, ${NOBODY})`, mountpoint)).toBe(refused);
  });
});

describe("what a file of an export is not", () => {
  test("it keeps its place, its times and has no extended attributes", async () => {
    await using disk = await mountDisk({ bytes: BYTES });
    const { mountpoint } = disk;
    const outcomes = {
      "os.unlink(path)": "Device or resource busy",
      "os.rename(path, path + '-')": "Device or resource busy",
      "os.utime(path, (1, 1))": "Operation not supported",
      "os.setxattr(path, 'user.a', b'1')": "Operation not supported",
      "os.getxattr(path, 'user.a')": "Operation not supported",
      "fcntl.ioctl(os.open(path, os.O_RDONLY), 0x1260, bytes(8))": "Inappropriate ioctl for device",
    };
    for (const [call, outcome] of Object.entries(outcomes)) {
      expect(`${call}: ${await outcomeOf(call, mountpoint)}`).toBe(`${call}: ${outcome}`);
    }
    expect(await stat(mountpoint)).toMatchObject({ nlink: 1, uid: 0, gid: 0, size: BYTES });
    await assertFileIs(mountpoint, disk.content);
  });
});

describe("a read-only export", () => {
  test("is read and never changed", async () => {
    await using disk = await mountDisk({ bytes: BYTES, export: "writable=off" });
    const { mountpoint } = disk;
    expect((await stat(mountpoint)).mode & 0o7777).toBe(0o400);
    await assertFileIs(mountpoint, disk.content);
    const calls = [WRITE, "os.truncate(path, 0)", "os.chmod(path, 0o600)", "os.chown(path, 1, 1)"];
    for (const call of calls) {
      expect(`${call}: ${await outcomeOf(call, mountpoint)}`).toBe(
        `${call}: Read-only file system`,
      );
    }
    await assertFileIs(disk.image, disk.content);
  });
});

describe("an ordinary user", () => {
  test("mounts with fusermount3, for himself alone", async () => {
    await using directory = await mountDirectory();
    const own = directory.file("own");
    await mkdir(own);
    await writeFile(`${own}/disk`, "");
    const content = await patternImage(`${own}/disk.raw`, BYTES);
    for (const path of [own, `${own}/disk`, `${own}/disk.raw`]) await chown(path, NOBODY, NOBODY);
    const mountpoint = `${own}/disk`;
    const options = `type=fuse,id=f0,node-name=disk,mountpoint=${mountpoint},writable=on`;
    const args = [...nodeArguments(`${own}/disk.raw`), "--export", options];
    const prefix = [...inOpenNamespace(directory.file("fuse")), ...AS_USER];
    await using running = await startDaemon(own, args, { prefix });
    // The root is another in a chroot.
    const enter = ["nsenter", "--mount", "--root", `--target=${running.daemon.pid}`];
    expect(await outcomeOf(READ, mountpoint, [...enter, ...AS_NOBODY])).toBe("ok");
    expect(await outcomeOf(WRITE, mountpoint, [...enter, ...AS_NOBODY])).toBe("ok");
    expect(await outcomeOf(READ, mountpoint, enter)).toBe(DENIED); // Root.
    const mounts = () => run("nsenter", [...enter.slice(1), "cat", "/proc/self/mounts"]);
    expect(await mounts()).toContain(`/dev/fuse ${mountpoint} fuse `);
    await running.qmp.execute("block-export-del", { id: "f0" });
    await running.qmp.event("BLOCK_EXPORT_DELETED");
    expect(await mounts()).not.toContain(`/dev/fuse ${mountpoint} fuse `);
    content.write("nobody");
    await assertFileIs(`${own}/disk.raw`, content);
  });
});
