/** Passes a descriptor through a unix socket, with one byte. */
import { IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../../src/abi/linux.ts";
import {
  CMSGHDR_LEN,
  CMSGHDR_LEVEL,
  CMSGHDR_SIZE,
  CMSGHDR_TYPE,
  MSGHDR_CONTROL,
  MSGHDR_CONTROLLEN,
  MSGHDR_IOV,
  MSGHDR_IOVLEN,
  MSGHDR_SIZE,
  SCM_RIGHTS,
  SOL_SOCKET,
} from "../../src/abi/linux-socket.ts";
import { Memory } from "../../src/io/memory.ts";
import type { Linux } from "../../src/runtime/linux.ts";

const IOV_AT = MSGHDR_SIZE;
const CONTROL_AT = IOV_AT + IOVEC_SIZE;
const CONTROL_BYTES = CMSGHDR_SIZE + 8;
const DATA_AT = CONTROL_AT + CONTROL_BYTES;

/** Returns what sendmsg() does. */
export function sendFd(linux: Linux, socket: number, fd: number): number {
  const memory = new Memory(linux, 4096);
  const { address } = memory;
  memory.setU64(MSGHDR_IOV, address + IOV_AT);
  memory.setU64(MSGHDR_IOVLEN, 1);
  memory.setU64(MSGHDR_CONTROL, address + CONTROL_AT);
  memory.setU64(MSGHDR_CONTROLLEN, CONTROL_BYTES);
  memory.setU64(IOV_AT + IOVEC_BASE, address + DATA_AT);
  memory.setU64(IOV_AT + IOVEC_LEN, 1);
  memory.setU64(CONTROL_AT + CMSGHDR_LEN, CMSGHDR_SIZE + 4);
  memory.view.setInt32(CONTROL_AT + CMSGHDR_LEVEL, SOL_SOCKET, true);
  memory.view.setInt32(CONTROL_AT + CMSGHDR_TYPE, SCM_RIGHTS, true);
  memory.view.setInt32(CONTROL_AT + CMSGHDR_SIZE, fd, true);
  const result = linux.sendmsg(socket, address, 0);
  memory.unmap();
  return result;
}
