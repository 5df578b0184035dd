/**
 * Linux: sockets.
 * Spec: Linux include/linux/socket.h, include/uapi/linux/{in,in6,un,tcp,vm_sockets}.h
 */

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const AF_VSOCK = 40;

export const SOCK_STREAM = 1;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;

export const SOL_SOCKET = 1;
export const SO_REUSEADDR = 2;
export const SO_TYPE = 3;
export const SO_ERROR = 4;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_KEEPALIVE = 9;
export const SO_PEERCRED = 17;
export const SO_ACCEPTCONN = 30;
export const SO_DOMAIN = 39;
export const SO_ZEROCOPY = 60;

export const IPPROTO_TCP = 6;
export const TCP_NODELAY = 1;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_KEEPCNT = 6;
export const IPPROTO_MPTCP = 262;
export const IPPROTO_IPV6 = 41;
export const IPV6_V6ONLY = 26;

export const SHUT_RD = 0;
export const SHUT_WR = 1;
export const SHUT_RDWR = 2;

export const MSG_PEEK = 0x02;
export const MSG_CTRUNC = 0x08;
export const MSG_TRUNC = 0x20;
export const MSG_DONTWAIT = 0x40;
export const MSG_WAITALL = 0x100;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_MORE = 0x8000;
export const MSG_CMSG_CLOEXEC = 0x4000_0000;

export const SCM_RIGHTS = 1;

/** Largest that `Linux` handles: struct sockaddr_storage. */
export const SOCKADDR_SIZE_MAX = 128;
// struct sockaddr_un: u16 family, then the path.
export const SOCKADDR_FAMILY = 0;
export const SOCKADDR_UN_SIZE = 110;
export const SOCKADDR_UN_PATH = 2;
export const SOCKADDR_UN_PATH_BYTES = 108;
// struct sockaddr_in and sockaddr_in6; port and address are big-endian.
export const SOCKADDR_IN_SIZE = 16;
export const SOCKADDR_IN_PORT = 2;
export const SOCKADDR_IN_ADDR = 4;
export const SOCKADDR_IN6_SIZE = 28;
export const SOCKADDR_IN6_PORT = 2;
export const SOCKADDR_IN6_ADDR = 8;
export const SOCKADDR_IN6_SCOPE_ID = 24;
// struct sockaddr_vm.
export const SOCKADDR_VM_SIZE = 16;
export const SOCKADDR_VM_PORT = 4;
export const SOCKADDR_VM_CID = 8;

// struct msghdr: byte offsets.
export const MSGHDR_SIZE = 56;
export const MSGHDR_NAME = 0;
export const MSGHDR_NAMELEN = 8;
export const MSGHDR_IOV = 16;
export const MSGHDR_IOVLEN = 24;
export const MSGHDR_CONTROL = 32;
export const MSGHDR_CONTROLLEN = 40;
export const MSGHDR_FLAGS = 48;

// struct cmsghdr: u64 length of header and data, int level, int type, data; aligned to 8.
export const CMSGHDR_SIZE = 16;
export const CMSGHDR_LEN = 0;
export const CMSGHDR_LEVEL = 8;
export const CMSGHDR_TYPE = 12;
export const CMSGHDR_ALIGNMENT = 8;
