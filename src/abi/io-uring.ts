/**
 * io_uring: layouts and constants that the ring uses.
 * Spec: Linux include/uapi/linux/io_uring.h; io_uring_setup(2), io_uring_enter(2)
 */

// Offsets for mmap() of the ring fd.
export const IORING_OFF_SQ_RING = 0;
export const IORING_OFF_SQES = 0x10000000;

// io_uring_setup() flags.
export const IORING_SETUP_CQSIZE = 1 << 3;
export const IORING_SETUP_CLAMP = 1 << 4;
export const IORING_SETUP_SUBMIT_ALL = 1 << 7;
export const IORING_SETUP_COOP_TASKRUN = 1 << 8;
export const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
export const IORING_SETUP_SINGLE_ISSUER = 1 << 12;
export const IORING_SETUP_DEFER_TASKRUN = 1 << 13;

// io_uring_params.features.
export const IORING_FEAT_SINGLE_MMAP = 1 << 0;
export const IORING_FEAT_NODROP = 1 << 1;
export const IORING_FEAT_EXT_ARG = 1 << 8;

// io_uring_enter() flags.
export const IORING_ENTER_GETEVENTS = 1 << 0;
export const IORING_ENTER_EXT_ARG = 1 << 3;

// Flags of the submission ring, written by the kernel.
export const IORING_SQ_CQ_OVERFLOW = 1 << 1;
export const IORING_SQ_TASKRUN = 1 << 2;

// io_uring_register() opcodes.
export const IORING_REGISTER_PROBE = 8;
export const IO_URING_OP_SUPPORTED = 1 << 0;

// Operations.
export const IORING_OP_NOP = 0;
export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
export const IORING_OP_FSYNC = 3;
export const IORING_OP_POLL_ADD = 6;
export const IORING_OP_SENDMSG = 9;
export const IORING_OP_RECVMSG = 10;
export const IORING_OP_ACCEPT = 13;
export const IORING_OP_ASYNC_CANCEL = 14;
export const IORING_OP_FALLOCATE = 17;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_OP_SEND = 26;
export const IORING_OP_RECV = 27;

export const IORING_FSYNC_DATASYNC = 1 << 0;

// struct io_uring_params, 120 bytes: byte offsets.
export const PARAMS_SIZE = 120;
export const PARAMS_SQ_ENTRIES = 0;
export const PARAMS_CQ_ENTRIES = 4;
export const PARAMS_FLAGS = 8;
export const PARAMS_FEATURES = 20;
export const PARAMS_SQ_OFF = 40;
export const PARAMS_CQ_OFF = 80;

// struct io_sqring_offsets and io_cqring_offsets: byte offsets inside them.
export const SQ_OFF_HEAD = 0;
export const SQ_OFF_TAIL = 4;
export const SQ_OFF_RING_MASK = 8;
export const SQ_OFF_RING_ENTRIES = 12;
export const SQ_OFF_FLAGS = 16;
export const SQ_OFF_ARRAY = 24;
export const CQ_OFF_HEAD = 0;
export const CQ_OFF_TAIL = 4;
export const CQ_OFF_RING_MASK = 8;
export const CQ_OFF_RING_ENTRIES = 12;
export const CQ_OFF_CQES = 20;

// struct io_uring_sqe, 64 bytes: u32 indexes.
export const SQE_SIZE = 64;
export const SQE_U32 = 16;
/** opcode u8 | flags u8 | ioprio u16 */
export const SQE_OPCODE_U32 = 0;
export const SQE_FD_U32 = 1;
/** off, addr2 */
export const SQE_OFF_U32 = 2;
export const SQE_ADDR_U32 = 4;
export const SQE_LEN_U32 = 6;
/** rw_flags, fsync_flags, poll32_events, msg_flags, accept_flags, cancel_flags */
export const SQE_OP_FLAGS_U32 = 7;
export const SQE_USER_DATA_U32 = 8;

// struct io_uring_cqe, 16 bytes: u32 indexes.
export const CQE_SIZE = 16;
export const CQE_U32 = 4;
export const CQE_USER_DATA_U32 = 0;
export const CQE_RES_U32 = 2;

// struct io_uring_getevents_arg, 24 bytes: byte offsets.
export const GETEVENTS_ARG_SIZE = 24;
export const GETEVENTS_ARG_TS = 16;

// struct io_uring_probe: 16 bytes, then struct io_uring_probe_op of 8 bytes each.
export const PROBE_LAST_OP = 0;
export const PROBE_HEADER_SIZE = 16;
export const PROBE_OP_SIZE = 8;
export const PROBE_OP_FLAGS = 2;
