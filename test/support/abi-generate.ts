/**
 * Makes test/unit/abi/{linux,syscalls}.json: what the C headers of Linux say about each name that
 * src/abi/{linux,linux-attributes,linux-mount,linux-socket,syscalls}.ts exports. Run where there
 * is a C compiler, with `bun test/support/abi-generate.ts`; the tests only read its result.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as linux from "../../src/abi/linux.ts";
import * as attributes from "../../src/abi/linux-attributes.ts";
import * as mount from "../../src/abi/linux-mount.ts";
import * as socket from "../../src/abi/linux-socket.ts";
import { SYSCALLS } from "../../src/abi/syscalls.ts";

const HEADERS = [
  "fcntl.h linux/falloc.h linux/fs.h linux/vm_sockets.h netinet/in.h netinet/tcp.h poll.h",
  "stddef.h stdio.h sys/epoll.h sys/eventfd.h sys/ioctl.h sys/mman.h sys/mount.h sys/prctl.h",
  "sys/socket.h sys/stat.h sys/uio.h sys/un.h time.h",
];

/** Of names that are no macro: the C expression. */
const EXPRESSIONS: Readonly<Record<string, string>> = {
  ...struct("STATX", "struct statx", {
    MASK: "stx_mask",
    BLKSIZE: "stx_blksize",
    MODE: "stx_mode",
    INO: "stx_ino",
    BYTES: "stx_size",
    BLOCKS: "stx_blocks",
    CTIME: "stx_ctime",
    RDEV_MAJOR: "stx_rdev_major",
    RDEV_MINOR: "stx_rdev_minor",
    DEV_MAJOR: "stx_dev_major",
    DEV_MINOR: "stx_dev_minor",
    MNT_ID_AT: "stx_mnt_id",
    DIO_MEM_ALIGN: "stx_dio_mem_align",
    DIO_OFFSET_ALIGN: "stx_dio_offset_align",
  }),
  ...struct("FSXATTR", "struct fsxattr", { XFLAGS: "fsx_xflags", EXTSIZE: "fsx_extsize" }),
  ...struct("FLOCK", "struct flock", {
    TYPE: "l_type",
    WHENCE: "l_whence",
    START: "l_start",
    LEN: "l_len",
    PID: "l_pid",
  }),
  ...struct("TIMESPEC", "struct timespec", { SEC: "tv_sec", NSEC: "tv_nsec" }),
  ...struct("IOVEC", "struct iovec", { BASE: "iov_base", LEN: "iov_len" }),
  // struct cachestat_range: 2 u64; struct cachestat: 5. Younger than some headers.
  CACHESTAT_RANGE_SIZE: "2 * 8",
  CACHESTAT_SIZE: "5 * 8",
  SOCKADDR_SIZE_MAX: "sizeof(struct sockaddr_storage)",
  SOCKADDR_FAMILY: "offsetof(struct sockaddr_storage, ss_family)",
  ...struct("SOCKADDR_UN", "struct sockaddr_un", { PATH: "sun_path" }),
  SOCKADDR_UN_PATH_BYTES: "sizeof(((struct sockaddr_un *)0)->sun_path)",
  ...struct("SOCKADDR_IN", "struct sockaddr_in", { PORT: "sin_port", ADDR: "sin_addr" }),
  ...struct("SOCKADDR_IN6", "struct sockaddr_in6", {
    PORT: "sin6_port",
    ADDR: "sin6_addr",
    SCOPE_ID: "sin6_scope_id",
  }),
  ...struct("SOCKADDR_VM", "struct sockaddr_vm", { PORT: "svm_port", CID: "svm_cid" }),
  ...struct("MSGHDR", "struct msghdr", {
    NAME: "msg_name",
    NAMELEN: "msg_namelen",
    IOV: "msg_iov",
    IOVLEN: "msg_iovlen",
    CONTROL: "msg_control",
    CONTROLLEN: "msg_controllen",
    FLAGS: "msg_flags",
  }),
  ...struct("CMSGHDR", "struct cmsghdr", {
    LEN: "cmsg_len",
    LEVEL: "cmsg_level",
    TYPE: "cmsg_type",
  }),
  CMSGHDR_ALIGNMENT: "CMSG_ALIGN(1)",
};

function struct(
  prefix: string,
  type: string,
  fields: Readonly<Record<string, string>>,
): Record<string, string> {
  const found: Record<string, string> = { [`${prefix}_SIZE`]: `sizeof(${type})` };
  for (const [name, field] of Object.entries(fields)) {
    found[`${prefix}_${name}`] = `offsetof(${type}, ${field})`;
  }
  return found;
}

/** Names of the machine that this does not run on can't be asked for. */
const names = Object.entries({ ...linux, ...attributes, ...mount, ...socket })
  .filter(([name, value]) => typeof value === "number" && !name.startsWith("ARM64_"))
  .map(([name]) => name);

const folder = mkdtempSync(join(tmpdir(), "abi-"));
try {
  const lines = names.map((name) => {
    const expression = EXPRESSIONS[name] ?? name;
    return `printf("${name} %lld\\n", (long long)(${expression}));`;
  });
  const includes = HEADERS.flatMap((line) => line.split(" ")).map((name) => `#include <${name}>`);
  const program = ["#define _GNU_SOURCE", ...includes, "int main(void) {", ...lines, "}"];
  writeFileSync(join(folder, "abi.c"), program.join("\n"));
  execFileSync("cc", ["-w", "-o", join(folder, "abi"), join(folder, "abi.c")]);
  const output = execFileSync(join(folder, "abi"), { encoding: "utf8" }).trim();
  const values = output.split("\n").map((line) => line.split(" ") as [string, string]);
  const json = Object.fromEntries(values.map(([name, value]) => [name, Number(value)]));
  save("linux.json", json);
  save("syscalls.json", {
    x64: syscallNumbers("asm/unistd_64.h"),
    arm64: syscallNumbers("asm-generic/unistd.h"),
  });
} finally {
  rmSync(folder, { recursive: true });
}

function syscallNumbers(header: string): Record<string, number> {
  const input = `#include <${header}>\n`;
  const macros = execFileSync("cc", ["-dM", "-E", "-x", "c", "-"], { input, encoding: "utf8" });
  const found = macros.matchAll(/^#define __NR(?:3264)?_(\w+) (\d+)$/gm);
  const all = new Map([...found].map(([, name, number]) => [name, Number(number)]));
  const known = Object.keys(SYSCALLS.x64).filter((name) => all.has(name));
  return Object.fromEntries(known.map((name) => [name, all.get(name)!]));
}

function save(name: string, value: unknown): void {
  const target = new URL(`../unit/abi/${name}`, import.meta.url);
  writeFileSync(target, `${JSON.stringify(value, null, 2)}\n`);
}
