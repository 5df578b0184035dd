/**
 * What system calls on an exported file answer, errors included, is what they answer with
 * qemu-storage-daemon 11.1.3: fuse-calls.json was recorded there with the same script and options.
 * Requests that the kernel serves by itself (passthrough) are no part of this.
 */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { MiB } from "../support/images.ts";
import recorded from "./fuse-calls.json" with { type: "json" };
import { mountDisk, python } from "./fuse-scene.ts";

setDefaultTimeout(180_000);

/** Prints one line for each call, as a JSON array. */
const CALLS = `
import ctypes, errno, fcntl, json, os, sys
path, MiB, lines = sys.argv[1], 1 << 20, []
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
size = lambda: os.stat(path).st_size
def say(name, call):
    try:
        found = call()
    except OSError as error:
        found = errno.errorcode[error.errno]
    lines.append(f"{name}: {found}")
def fallocate(mode, offset, length):
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "")
    return size()
def opened(flags):
    os.close(os.open(path, flags))
    return size()
writable = not os.statvfs(path).f_flag & os.ST_RDONLY
fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
if writable:
    os.pwrite(fd, b"x" * 3 * MiB, 0)
for name in ("O_WRONLY", "O_DIRECTORY", "O_TRUNC", "O_CREAT"):
    say(f"open {name}", lambda: opened(os.O_RDWR * (name == "O_TRUNC") | getattr(os, name)))
say("open below", lambda: os.open(path + "/x", os.O_RDONLY))
if writable:
    os.ftruncate(fd, 8 * MiB)
    os.pwrite(fd, b"x" * 3 * MiB, 0)
end = size()
for at in (end - 10, end, 1 << 40, (1 << 63) - 4096):
    say(f"read {at}", lambda: len(os.pread(fd, 100, at)))
for at in (12345, end - 10, end, end + MiB, 1 << 62):
    say(f"write {at}", lambda: (os.pwrite(fd, b"y" * 100, at), size()))
modes = {"none": 0, "KEEP": 1, "PUNCH": 2, "PUNCH KEEP": 3, "COLLAPSE": 8, "ZERO": 16,
         "ZERO KEEP": 17, "INSERT": 32, "UNSHARE": 64}
for name, mode in modes.items():
    end = size()
    for at in (4096, 5001, end - 4096, end, end + MiB):
        say(f"fallocate {name} {at}", lambda: fallocate(mode, at, 8192))
for length in (6 * MiB + 77, 9 * MiB, 1 << 62):
    say(f"truncate {length}", lambda: (os.ftruncate(fd, length), size()))
if writable:
    os.ftruncate(fd, 0)
    os.ftruncate(fd, 9 * MiB)
    os.pwrite(fd, b"x" * 3 * MiB, 0)
    os.fsync(fd)
for whence in ("SEEK_DATA", "SEEK_HOLE"):
    for at in (0, 1, 4 * MiB, size() - 1, size(), size() + 1, 1 << 50):
        say(f"{whence} {at}", lambda: os.lseek(fd, at, getattr(os, whence)))
for mode in (0o600, 0o400, 0o640, 0o4755, 0o000, 0o200):
    say(f"chmod {mode:o}", lambda: (os.chmod(path, mode), oct(os.stat(path).st_mode))[1])
say("chown", lambda: (os.chown(path, 1, 1), os.stat(path).st_uid)[1])
say("utime", lambda: os.utime(path, (1, 1)))
say("setxattr", lambda: os.setxattr(path, "user.x", b"1"))
say("getxattr", lambda: os.getxattr(path, "user.x"))
for request in (0x1234, 0x80081272, 0xc020660b, 0x80086601):
    say(f"ioctl {request:x}", lambda: fcntl.ioctl(fd, request, bytes(64)))
say("rename", lambda: os.rename(path, path + "2"))
say("unlink", lambda: os.unlink(path))
say("link", lambda: os.link(path, path + "2"))
say("flock", lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
say("fsync", lambda: os.fsync(fd))
say("close", lambda: os.close(fd))
print(json.dumps(lines))
`;

describe("system calls on an exported file answer as with qemu-storage-daemon", () => {
  for (const [options, lines] of Object.entries(recorded)) {
    test(options, async () => {
      const scene = { bytes: 8 * MiB, sparse: true, filtered: true, export: options };
      await using disk = await mountDisk(scene);
      expect(JSON.parse(await python(CALLS, [disk.mountpoint]))).toEqual(lines);
    });
  }
});
