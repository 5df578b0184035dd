/** Image locks between two daemons, and between a daemon and the tools. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawn } from "node:child_process";
import { attempt, requireClient } from "../support/clients.ts";
import { MiB, patternImage, temporaryDirectory } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;

/** Locks the named bytes of a file as image locks are taken: shared, by open file. */
const LOCKER = `
import fcntl, struct, sys
image = open(sys.argv[1], "r+b")
for byte in sys.argv[2:]:
    lock = struct.pack("hhqqi", fcntl.F_RDLCK, 0, int(byte), 1, 0)
    fcntl.fcntl(image, 37, lock)  # F_OFD_SETLK
print("locked", flush=True)
sys.stdin.read()
`;

function exportArgs(directory: string, options: string): string[] {
  return [
    ...["--nbd-server", `addr.type=unix,addr.path=${directory}/nbd.sock`],
    ...["--export", `type=nbd,id=e0,node-name=disk,${options}`],
  ];
}

describe("image locks", () => {
  test("two writable exports of one raw image share it, as both share everything", async () => {
    await using first = await serve();
    await using second = await serve({ image: first.image });
    expect(second.bytes).toBe(first.bytes);
  });

  test("qemu-img cannot open the exported image alone, and can with -U", async () => {
    await using disk = await serve();
    const args = ["resize", "-f", "raw", disk.image, String(8 * MiB)];
    const resize = await attempt("qemu-img", args);
    expect(resize.code).toBe(1);
    expect(resize.stderr).toContain('Failed to get "resize" lock');
    const info = await attempt("qemu-img", ["info", "-U", "-f", "raw", disk.image]);
    expect(info.code).toBe(0);
  });

  test("a writer that shares no writing keeps the daemon from it, unless locking=off", async () => {
    await using directory = await temporaryDirectory();
    const image = directory.file("disk.raw");
    await patternImage(image, MiB);
    await using _ = await holdLocks(image, [WRITE, RESIZE]);
    const node = `driver=file,node-name=disk,filename=${image}`;
    const writable = exportArgs(directory.path, "writable=on");
    await expect(startDaemon(directory.path, ["--blockdev", node, ...writable])).rejects.toThrow(
      'Failed to get "write" lock',
    );
    const blockdev = ["--blockdev", `${node},locking=off`];
    await using unlocked = await startDaemon(directory.path, [...blockdev, ...writable]);
    expect(unlocked.daemon.exit).toBeUndefined();
  });

  test("force-share=on reads an image that its writer may resize", async () => {
    await using directory = await temporaryDirectory();
    const image = directory.file("disk.raw");
    await patternImage(image, MiB);
    await using _ = await holdLocks(image, [WRITE]);
    const file = `file.driver=file,file.filename=${image}`;
    const node = `driver=raw,node-name=disk,read-only=on,${file}`;
    const readable = exportArgs(directory.path, "writable=off");
    await expect(startDaemon(directory.path, ["--blockdev", node, ...readable])).rejects.toThrow(
      'Failed to get shared "resize" lock',
    );
    const blockdev = ["--blockdev", `${node},force-share=on`];
    await using reader = await startDaemon(directory.path, [...blockdev, ...readable]);
    expect(reader.daemon.exit).toBeUndefined();
  });

  test("force-share=on is refused for a writable node", async () => {
    await expect(serve({ file: "force-share=on" })).rejects.toThrow(
      "force-share=on can only be used with read-only images",
    );
  });

  test("are gone with the node", async () => {
    await using disk = await serve();
    await disk.qmp.execute("block-export-del", { id: "e0" });
    await disk.qmp.event("BLOCK_EXPORT_DELETED");
    await disk.qmp.execute("blockdev-del", { "node-name": "disk" });
    await disk.qmp.execute("blockdev-del", { "node-name": "disk-file" });
    const args = ["resize", "-f", "raw", disk.image, String(8 * MiB)];
    expect(await attempt("qemu-img", args)).toMatchObject({ code: 0 });
  });
});

/** Holds the image as a writer that does not share `unshared` with others. */
async function holdLocks(image: string, unshared: readonly number[]): Promise<AsyncDisposable> {
  const held = [CONSISTENT_READ, WRITE, RESIZE].map((permission) => 100 + permission);
  const bytes = [...held, ...unshared.map((permission) => 200 + permission)].map(String);
  const child = spawn(requireClient("python3"), ["-c", LOCKER, image, ...bytes], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = new Promise((resolve) => child.on("close", resolve));
  await new Promise((resolve) => child.stdout.once("data", resolve));
  return {
    [Symbol.asyncDispose]: async () => {
      child.stdin.end();
      await ended;
    },
  };
}
