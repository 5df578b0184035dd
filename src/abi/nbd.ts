/**
 * The Network Block Device protocol: values and layouts, everything big-endian on the wire.
 * Thread: any.
 *
 * Spec: NBD proto.md; extended headers as in its branch extension-ext-header.
 */

// Handshake phase: magic numbers of 64 bits as pairs of u32.
/** "NBDMAGIC" */
export const NBD_MAGIC_HI = 0x4e42444d;
export const NBD_MAGIC_LO = 0x41474943;
/** "IHAVEOPT": ends the greeting, begins every option. */
export const NBD_OPTS_MAGIC_HI = 0x49484156;
export const NBD_OPTS_MAGIC_LO = 0x454f5054;
export const NBD_REP_MAGIC_HI = 0x0003e889;
export const NBD_REP_MAGIC_LO = 0x045565a9;

/** Greeting: NBD_MAGIC, NBD_OPTS_MAGIC, u16 handshake flags. */
export const NBD_GREETING_BYTES = 18;
export const NBD_CLIENT_FLAGS_BYTES = 4;
/** u64 magic, u32 option, u32 length. */
export const NBD_OPTION_HEADER_BYTES = 16;
/** u64 magic, u32 option, u32 reply type, u32 length. */
export const NBD_OPTION_REPLY_HEADER_BYTES = 20;
/** Reply to NBD_OPT_EXPORT_NAME: u64 size, u16 transmission flags, then zeroes unless NO_ZEROES. */
export const NBD_EXPORT_NAME_REPLY_BYTES = 10;
export const NBD_EXPORT_NAME_ZEROES_BYTES = 124;
export const NBD_DEFAULT_PORT = 10809;
/** Of a name, description or meta context query. */
export const NBD_MAX_STRING_SIZE = 4096;
/** Of an option's data, and of a request's payload where the server asks for nothing else. */
export const NBD_MAX_BUFFER_SIZE = 32 * 1024 * 1024;

// Handshake flags, server.
export const NBD_FLAG_FIXED_NEWSTYLE = 1 << 0;
export const NBD_FLAG_NO_ZEROES = 1 << 1;
// Handshake flags, client.
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0;
export const NBD_FLAG_C_NO_ZEROES = 1 << 1;

// Transmission flags.
export const NBD_FLAG_HAS_FLAGS = 1 << 0;
export const NBD_FLAG_READ_ONLY = 1 << 1;
export const NBD_FLAG_SEND_FLUSH = 1 << 2;
export const NBD_FLAG_SEND_FUA = 1 << 3;
export const NBD_FLAG_SEND_TRIM = 1 << 5;
export const NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6;
export const NBD_FLAG_SEND_DF = 1 << 7;
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8;
export const NBD_FLAG_SEND_CACHE = 1 << 10;
export const NBD_FLAG_SEND_FAST_ZERO = 1 << 11;
export const NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12;

// Options.
export const NBD_OPT_EXPORT_NAME = 1;
export const NBD_OPT_ABORT = 2;
export const NBD_OPT_LIST = 3;
export const NBD_OPT_STARTTLS = 5;
export const NBD_OPT_INFO = 6;
export const NBD_OPT_GO = 7;
export const NBD_OPT_STRUCTURED_REPLY = 8;
export const NBD_OPT_LIST_META_CONTEXT = 9;
export const NBD_OPT_SET_META_CONTEXT = 10;
export const NBD_OPT_EXTENDED_HEADERS = 11;

// Option reply types; errors have bit 31.
export const NBD_REP_ACK = 1;
export const NBD_REP_SERVER = 2;
export const NBD_REP_INFO = 3;
export const NBD_REP_META_CONTEXT = 4;
export const NBD_REP_FLAG_ERROR = 0x8000_0000;
export const NBD_REP_ERR_UNSUP = 0x8000_0001;
export const NBD_REP_ERR_POLICY = 0x8000_0002;
export const NBD_REP_ERR_INVALID = 0x8000_0003;
export const NBD_REP_ERR_PLATFORM = 0x8000_0004;
export const NBD_REP_ERR_TLS_REQD = 0x8000_0005;
export const NBD_REP_ERR_UNKNOWN = 0x8000_0006;
export const NBD_REP_ERR_SHUTDOWN = 0x8000_0007;
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x8000_0008;
export const NBD_REP_ERR_TOO_BIG = 0x8000_0009;
export const NBD_REP_ERR_EXT_HEADER_REQD = 0x8000_000a;

// Information types of NBD_OPT_INFO and NBD_OPT_GO.
export const NBD_INFO_EXPORT = 0;
export const NBD_INFO_NAME = 1;
export const NBD_INFO_DESCRIPTION = 2;
export const NBD_INFO_BLOCK_SIZE = 3;

// Transmission phase: headers.
export const NBD_REQUEST_MAGIC = 0x25609513;
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c;
/** u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u32 length. */
export const NBD_REQUEST_BYTES = 28;
/** The same with u64 length. */
export const NBD_EXTENDED_REQUEST_BYTES = 32;
/** u32 magic, u32 error, u64 cookie. */
export const NBD_SIMPLE_REPLY_BYTES = 16;
/** u32 magic, u16 flags, u16 type, u64 cookie, u32 length. */
export const NBD_STRUCTURED_REPLY_BYTES = 20;
/** u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u64 length. */
export const NBD_EXTENDED_REPLY_BYTES = 32;
// Commands.
export const NBD_CMD_READ = 0;
export const NBD_CMD_WRITE = 1;
export const NBD_CMD_DISC = 2;
export const NBD_CMD_FLUSH = 3;
export const NBD_CMD_TRIM = 4;
export const NBD_CMD_CACHE = 5;
export const NBD_CMD_WRITE_ZEROES = 6;
export const NBD_CMD_BLOCK_STATUS = 7;
// Command flags.
export const NBD_CMD_FLAG_FUA = 1 << 0;
export const NBD_CMD_FLAG_NO_HOLE = 1 << 1;
export const NBD_CMD_FLAG_DF = 1 << 2;
export const NBD_CMD_FLAG_REQ_ONE = 1 << 3;
export const NBD_CMD_FLAG_FAST_ZERO = 1 << 4;
export const NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5;
// Structured and extended reply chunks: flags, types; errors have bit 15.
export const NBD_REPLY_FLAG_DONE = 1 << 0;
export const NBD_REPLY_TYPE_NONE = 0;
/** u64 offset, data. */
export const NBD_REPLY_TYPE_OFFSET_DATA = 1;
/** u64 offset, u32 hole size. */
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2;
/** u32 context id, then u32 length and u32 flags of each extent. */
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5;
/** u32 context id, u32 count, then u64 length and u64 flags of each extent. */
export const NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6;
export const NBD_REPLY_FLAG_ERROR = 1 << 15;
/** u32 error, u16 message length, message. */
export const NBD_REPLY_TYPE_ERROR = NBD_REPLY_FLAG_ERROR + 1;
/** The same, then u64 offset. */
export const NBD_REPLY_TYPE_ERROR_OFFSET = NBD_REPLY_FLAG_ERROR + 2;
// Block status: base:allocation, qemu:dirty-bitmap:NAME.
export const NBD_STATE_HOLE = 1 << 0;
export const NBD_STATE_ZERO = 1 << 1;
export const NBD_STATE_DIRTY = 1 << 0;
// Error values.
export const NBD_SUCCESS = 0;
export const NBD_EPERM = 1;
export const NBD_EIO = 5;
export const NBD_ENOMEM = 12;
export const NBD_EINVAL = 22;
export const NBD_ENOSPC = 28;
export const NBD_EOVERFLOW = 75;
export const NBD_ENOTSUP = 95;
export const NBD_ESHUTDOWN = 108;
