/**
 * Mounting as an ordinary user, through the set-user-id program of libfuse. Thread: main.
 * Spec: fusermount3(1); libfuse util/fusermount.c
 */
import { IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../../abi/linux.ts";
import {
  AF_UNIX,
  CMSGHDR_LEVEL,
  CMSGHDR_SIZE,
  CMSGHDR_TYPE,
  MSG_CMSG_CLOEXEC,
  MSG_DONTWAIT,
  MSGHDR_CONTROL,
  MSGHDR_CONTROLLEN,
  MSGHDR_IOV,
  MSGHDR_IOVLEN,
  MSGHDR_SIZE,
  SCM_RIGHTS,
  SOCK_STREAM,
  SOL_SOCKET,
} from "../../abi/linux-socket.ts";
import { Memory } from "../../io/memory.ts";
import type { Process } from "../../runtime/driver.ts";
import { ENOTCONN } from "../../runtime/errno.ts";
import type { Linux } from "../../runtime/linux.ts";

const PROGRAM = "fusermount3";
/** Names the descriptor of the socket by which it sends that of the device. */
const SOCKET_VARIABLE = "_FUSE_COMMFD";
/** The descriptor that a program inherits: see Process.run(). */
const INHERITED_FD = 3;
const TIMEOUT_MS = 10_000;

const MEMORY_BYTES = 4096;
const FD_BYTES = 4;
const IOV_AT = MSGHDR_SIZE;
const CONTROL_AT = IOV_AT + IOVEC_SIZE;
const CONTROL_BYTES = CMSGHDR_SIZE + 8;
const DATA_AT = CONTROL_AT + CONTROL_BYTES;

/** What it says when it fails. */
export interface FusermountFailure {
  readonly stderr: string;
}

/** Returns a descriptor of /dev/fuse, the caller's to close. `options`: as mount -o has them. */
export async function fusermount(
  linux: Linux,
  process: Pick<Process, "run">,
  path: string,
  options: readonly string[],
): Promise<number | FusermountFailure> {
  const pair = linux.socketpair(AF_UNIX, SOCK_STREAM);
  if (typeof pair === "number") return { stderr: "no socket for fusermount3" };
  const [ours, theirs] = pair;
  try {
    const { code, stderr } = await process.run(PROGRAM, ["-o", options.join(","), "--", path], {
      fd: theirs,
      env: { [SOCKET_VARIABLE]: String(INHERITED_FD) },
      timeoutMs: TIMEOUT_MS,
    });
    // It sends the descriptor before it ends.
    const fd = receiveFd(linux, ours);
    if (code === 0 && fd >= 0) return fd;
    if (fd >= 0) linux.close(fd);
    return { stderr };
  } finally {
    linux.close(ours);
    linux.close(theirs);
  }
}

/** Lazily, as open files may keep the file system. Undefined: done. */
export async function fusermountUnmount(
  process: Pick<Process, "run">,
  path: string,
): Promise<FusermountFailure | undefined> {
  const { code, stderr } = await process.run(PROGRAM, ["-u", "-q", "-z", "--", path], {
    timeoutMs: TIMEOUT_MS,
  });
  return code === 0 ? undefined : { stderr };
}

/** One descriptor that waits in the socket, close-on-exec. -ENOTCONN when there is none. */
export function receiveFd(linux: Linux, socket: number): number {
  const memory = new Memory(linux, MEMORY_BYTES);
  const { address } = memory;
  memory.setU64(MSGHDR_IOV, address + IOV_AT);
  memory.setU64(MSGHDR_IOVLEN, 1);
  memory.setU64(MSGHDR_CONTROL, address + CONTROL_AT);
  memory.setU64(MSGHDR_CONTROLLEN, CONTROL_BYTES);
  memory.setU64(IOV_AT + IOVEC_BASE, address + DATA_AT);
  memory.setU64(IOV_AT + IOVEC_LEN, 1);
  const result = linux.recvmsg(socket, address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  const word = (at: number): number => memory.view.getInt32(at, true);
  const hasFd =
    result > 0 &&
    memory.u32[MSGHDR_CONTROLLEN / 4]! >= CMSGHDR_SIZE + FD_BYTES &&
    word(CONTROL_AT + CMSGHDR_LEVEL) === SOL_SOCKET &&
    word(CONTROL_AT + CMSGHDR_TYPE) === SCM_RIGHTS;
  const fd = hasFd ? word(CONTROL_AT + CMSGHDR_SIZE) : -ENOTCONN;
  memory.unmap();
  return fd;
}
