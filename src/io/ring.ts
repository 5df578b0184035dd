/**
 * One io_uring instance: the mapped submission and completion rings. Thread: iothread, the single
 * issuer. Spec: io_uring_setup(2), io_uring_enter(2), include/uapi/linux/io_uring.h
 */
import * as abi from "../abi/io-uring.ts";
import {
  MAP_POPULATE,
  MAP_SHARED,
  PROT_READ,
  PROT_WRITE,
  TIMESPEC_NSEC,
  TIMESPEC_SEC,
  TIMESPEC_SIZE,
} from "../abi/linux.ts";
import { EINVAL, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { OutportError } from "../util/error.ts";
import { Memory } from "./memory.ts";

/** Submission entries; a burst beyond them costs one more system call, nothing else. */
const SQ_ENTRIES = 1024;
/** Completion entries; the kernel keeps what does not fit (IORING_FEAT_NODROP). */
const CQ_ENTRIES = 8 * SQ_ENTRIES;

/** Best first: older kernels refuse the later flags with EINVAL. */
const SETUP_FLAGS = [
  abi.IORING_SETUP_SINGLE_ISSUER |
    abi.IORING_SETUP_DEFER_TASKRUN |
    abi.IORING_SETUP_TASKRUN_FLAG |
    abi.IORING_SETUP_SUBMIT_ALL,
  abi.IORING_SETUP_COOP_TASKRUN | abi.IORING_SETUP_TASKRUN_FLAG | abi.IORING_SETUP_SUBMIT_ALL,
  0,
];
const FEATURES_NEEDED =
  abi.IORING_FEAT_SINGLE_MMAP | abi.IORING_FEAT_NODROP | abi.IORING_FEAT_EXT_ARG;
const OPERATIONS_NEEDED = [
  abi.IORING_OP_READV,
  abi.IORING_OP_WRITEV,
  abi.IORING_OP_FSYNC,
  abi.IORING_OP_POLL_ADD,
  abi.IORING_OP_SENDMSG,
  abi.IORING_OP_RECVMSG,
  abi.IORING_OP_ACCEPT,
  abi.IORING_OP_ASYNC_CANCEL,
  abi.IORING_OP_FALLOCATE,
  abi.IORING_OP_READ,
  abi.IORING_OP_WRITE,
  abi.IORING_OP_SEND,
  abi.IORING_OP_RECV,
];

/** Scratch memory of a ring: set-up structures first, then the timeout of enter(). */
const SCRATCH_BYTES = 4096;
const TIMESPEC_AT = 0;
const ARG_AT = TIMESPEC_AT + TIMESPEC_SIZE;
const NS_PER_S = 1_000_000_000;

export class Ring {
  readonly fd: number;
  /** Both rings' control words and the CQEs. */
  readonly words: Uint32Array;
  readonly sqes: Uint32Array;
  readonly sqMask: number;
  readonly cqMask: number;
  /** u32 indexes into `words`. */
  readonly cqHeadIndex: number;
  readonly cqTailIndex: number;
  readonly cqesIndex: number;
  readonly #linux: Linux;
  readonly #sqHeadIndex: number;
  readonly #sqTailIndex: number;
  readonly #sqFlagsIndex: number;
  readonly #scratch: Memory;
  readonly #mappings: [address: number, bytes: number][] = [];
  /** The tail as we know it; the kernel sees it at enter(). */
  #sqTail = 0;

  /**
   * Throws OutportError of kind "unsupported" when this kernel or its policy has no usable
   * io_uring.
   */
  constructor(linux: Linux) {
    this.#linux = linux;
    this.#scratch = new Memory(linux, SCRATCH_BYTES);
    this.fd = this.#setUp();
    const params = this.#scratch.view;
    const sq = (offset: number) => params.getUint32(abi.PARAMS_SQ_OFF + offset, true);
    const cq = (offset: number) => params.getUint32(abi.PARAMS_CQ_OFF + offset, true);
    const sqEntries = params.getUint32(abi.PARAMS_SQ_ENTRIES, true);
    const cqEntries = params.getUint32(abi.PARAMS_CQ_ENTRIES, true);
    this.words = this.#map(
      Math.max(
        sq(abi.SQ_OFF_ARRAY) + sqEntries * 4,
        cq(abi.CQ_OFF_CQES) + cqEntries * abi.CQE_SIZE,
      ),
      abi.IORING_OFF_SQ_RING,
    );
    this.sqes = this.#map(sqEntries * abi.SQE_SIZE, abi.IORING_OFF_SQES);
    this.sqMask = sqEntries - 1;
    this.cqMask = cqEntries - 1;
    this.#sqHeadIndex = sq(abi.SQ_OFF_HEAD) >>> 2;
    this.#sqTailIndex = sq(abi.SQ_OFF_TAIL) >>> 2;
    this.#sqFlagsIndex = sq(abi.SQ_OFF_FLAGS) >>> 2;
    this.cqHeadIndex = cq(abi.CQ_OFF_HEAD) >>> 2;
    this.cqTailIndex = cq(abi.CQ_OFF_TAIL) >>> 2;
    this.cqesIndex = cq(abi.CQ_OFF_CQES) >>> 2;
    const arrayIndex = sq(abi.SQ_OFF_ARRAY) >>> 2;
    for (let i = 0; i < sqEntries; i++) this.words[arrayIndex + i] = i;
    this.#probe();
  }

  /** Leaves struct io_uring_params filled at the start of the scratch memory. Returns the fd. */
  #setUp(): number {
    const { view, address, u8 } = this.#scratch;
    let fd = -EINVAL;
    for (const flags of SETUP_FLAGS) {
      u8.fill(0, 0, abi.PARAMS_SIZE);
      view.setUint32(
        abi.PARAMS_FLAGS,
        flags | abi.IORING_SETUP_CQSIZE | abi.IORING_SETUP_CLAMP,
        true,
      );
      view.setUint32(abi.PARAMS_CQ_ENTRIES, CQ_ENTRIES, true);
      fd = this.#linux.ioUringSetup(SQ_ENTRIES, address);
      if (fd !== -EINVAL) break;
    }
    if (fd < 0) throw unsupported(`io_uring_setup: ${strerror(fd)}`);
    const features = view.getUint32(abi.PARAMS_FEATURES, true);
    if ((features & FEATURES_NEEDED) !== FEATURES_NEEDED) {
      this.#linux.close(fd);
      throw unsupported("this kernel's io_uring is too old");
    }
    return fd;
  }

  #map(bytes: number, offset: number): Uint32Array {
    const flags = MAP_SHARED | MAP_POPULATE;
    const address = this.#linux.mmap(0, bytes, PROT_READ | PROT_WRITE, flags, this.fd, offset);
    if (address < 0) throw unsupported(`Cannot map the rings: ${strerror(address)}`);
    this.#mappings.push([address, bytes]);
    // SAFETY: mapped until close(), after which no view is touched.
    return new Uint32Array(this.#linux.ffi.view(address, bytes));
  }

  /** Overwrites the scratch memory. */
  #probe(): void {
    const { view, address, u8 } = this.#scratch;
    u8.fill(0);
    const ops = 64;
    const result = this.#linux.ioUringRegister(this.fd, abi.IORING_REGISTER_PROBE, address, ops);
    const missing = OPERATIONS_NEEDED.some((op) => {
      const at = abi.PROBE_HEADER_SIZE + op * abi.PROBE_OP_SIZE + abi.PROBE_OP_FLAGS;
      return (view.getUint16(at, true) & abi.IO_URING_OP_SUPPORTED) === 0;
    });
    if (result < 0 || missing) {
      this.close();
      throw unsupported("this kernel's io_uring lacks an operation");
    }
  }

  /** Entries queued and not yet taken by the kernel. */
  get queued(): number {
    return (this.#sqTail - this.words[this.#sqHeadIndex]!) >>> 0;
  }

  get full(): boolean {
    return this.queued > this.sqMask;
  }

  /** u32 index into `sqes` of the next entry; the caller fills all 16 words. Not when full. */
  push(): number {
    return (this.#sqTail++ & this.sqMask) * abi.SQE_U32;
  }

  /**
   * There is something to reap, or the kernel has deferred work that enter() would turn into it.
   */
  get ready(): boolean {
    const words = this.words;
    return (
      Atomics.load(words, this.cqTailIndex) !== words[this.cqHeadIndex] ||
      (words[this.#sqFlagsIndex]! & (abi.IORING_SQ_TASKRUN | abi.IORING_SQ_CQ_OVERFLOW)) !== 0
    );
  }

  /**
   * Submits what is queued and waits for `completions` CQEs, at most `timeoutNs` (Infinity: no
   * limit). Returns what io_uring_enter() returns: entries taken, or -errno.
   */
  enter(completions: number, timeoutNs: number): number {
    const words = this.words;
    // The kernel acquires the tail: every word of the entries is visible to it then.
    Atomics.store(words, this.#sqTailIndex, this.#sqTail >>> 0);
    const flags = abi.IORING_ENTER_GETEVENTS;
    if (completions === 0 || timeoutNs === Infinity) {
      return this.#linux.ioUringEnter(this.fd, this.queued, completions, flags, 0, 0);
    }
    const scratch = this.#scratch;
    const seconds = Math.floor(timeoutNs / NS_PER_S);
    // struct __kernel_timespec, struct io_uring_getevents_arg behind it; the rest stays 0.
    scratch.setU64(TIMESPEC_AT + TIMESPEC_SEC, seconds);
    scratch.setU64(TIMESPEC_AT + TIMESPEC_NSEC, timeoutNs - seconds * NS_PER_S);
    scratch.setU64(ARG_AT, 0);
    scratch.setU64(ARG_AT + 8, 0);
    scratch.setU64(ARG_AT + abi.GETEVENTS_ARG_TS, scratch.address + TIMESPEC_AT);
    return this.#linux.ioUringEnter(
      this.fd,
      this.queued,
      completions,
      flags | abi.IORING_ENTER_EXT_ARG,
      scratch.address + ARG_AT,
      abi.GETEVENTS_ARG_SIZE,
    );
  }

  /** The kernel cancels what is in flight; it may still write to its memory for a moment. */
  close(): void {
    for (const [address, bytes] of this.#mappings) this.#linux.munmap(address, bytes);
    this.#linux.close(this.fd);
    this.#scratch.unmap();
  }
}

function unsupported(message: string): OutportError {
  return new OutportError("unsupported", message);
}
