/**
 * Messages of a front-end: their syntax, and replies to them. Thread: iothread.
 * Spec: vhost-user.rst "Message Specification"
 */
import * as vu from "../../abi/vhost-user.ts";

/** More than any message has that we know. */
export const PAYLOAD_BYTES_MAX = 1024;

const U32_RANGE = 0x1_0000_0000;

export interface Header {
  readonly request: number;
  readonly flags: number;
  /** Of the payload. */
  readonly bytes: number;
}

/** Whole, with what came along. */
export interface Message {
  readonly request: number;
  /** VHOST_USER_NEED_REPLY_MASK was set. */
  readonly needsReply: boolean;
  readonly payload: Payload;
  /** The receiver closes those that it leaves in here. */
  readonly fds: number[];
}

/** Fields of a payload, in the machine's byte order, which is little-endian. */
export class Payload {
  readonly u8: Uint8Array;
  readonly #view: DataView;

  constructor(u8: Uint8Array) {
    this.u8 = u8;
    this.#view = new DataView(u8.buffer, u8.byteOffset, u8.byteLength);
  }

  get bytes(): number {
    return this.u8.length;
  }

  u16(at: number): number {
    return this.#view.getUint16(at, true);
  }

  u32(at: number): number {
    return this.#view.getUint32(at, true);
  }

  /** From 2^53 on inexact, and no safe integer: for addresses and lengths, which are refused. */
  u64(at: number): number {
    return this.u32(at) + this.u32(at + 4) * U32_RANGE;
  }

  bits(at: number): bigint {
    return this.#view.getBigUint64(at, true);
  }
}

export function readHeader(u8: Uint8Array): Header {
  const view = new DataView(u8.buffer, u8.byteOffset, vu.VHOST_USER_HDR_SIZE);
  return {
    request: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    bytes: view.getUint32(8, true),
  };
}

/** What is wrong with a header by itself; undefined when nothing is. */
export function checkHeader({ request, flags, bytes }: Header): string | undefined {
  if (bytes > PAYLOAD_BYTES_MAX) {
    return (
      `Error: too big message request: ${request}, size: vmsg->size: ${bytes}, ` +
      `while sizeof(vmsg->payload) = ${PAYLOAD_BYTES_MAX}`
    );
  }
  // QSD differs: it doesn't look.
  if ((flags & vu.VHOST_USER_VERSION_MASK) !== vu.VHOST_USER_VERSION) {
    return `Unsupported version in request: ${request}, flags: 0x${flags.toString(16)}`;
  }
  if ((flags & vu.VHOST_USER_REPLY_MASK) !== 0) return `Unexpected reply: ${request}`;
  return undefined;
}

/** Of the back-end: a reply, or a request of its own with other `flags`. */
export function encodeMessage(
  request: number,
  payload: Uint8Array,
  flags: number = vu.VHOST_USER_VERSION | vu.VHOST_USER_REPLY_MASK,
): Uint8Array {
  const bytes = new Uint8Array(vu.VHOST_USER_HDR_SIZE + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, request, true);
  view.setUint32(4, flags, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, vu.VHOST_USER_HDR_SIZE);
  return bytes;
}

export function encodeU64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

/** Payload and descriptors that a request must have. */
interface Shape {
  readonly bytes: number;
  readonly fdCount: number;
}

const U64: Shape = { bytes: 8, fdCount: 0 };
const NOTHING: Shape = { bytes: 0, fdCount: 0 };
const ONE_FD: Shape = { bytes: 0, fdCount: 1 };
const STATE: Shape = { bytes: vu.VHOST_VRING_STATE_SIZE, fdCount: 0 };

/**
 * Requests of one shape. Front-ends pad some: a longer payload is no error. Those that aren't
 * here have a shape that depends on what they say, or are not known.
 */
const SHAPES: Readonly<Record<number, Shape>> = {
  [vu.VHOST_USER_GET_FEATURES]: NOTHING,
  [vu.VHOST_USER_SET_FEATURES]: U64,
  [vu.VHOST_USER_SET_OWNER]: NOTHING,
  [vu.VHOST_USER_RESET_OWNER]: NOTHING,
  [vu.VHOST_USER_SET_LOG_BASE]: { bytes: vu.VHOST_USER_LOG_SIZE, fdCount: 1 },
  [vu.VHOST_USER_SET_LOG_FD]: ONE_FD,
  [vu.VHOST_USER_SET_VRING_NUM]: STATE,
  [vu.VHOST_USER_SET_VRING_ADDR]: { bytes: vu.VHOST_VRING_ADDR_SIZE, fdCount: 0 },
  [vu.VHOST_USER_SET_VRING_BASE]: STATE,
  [vu.VHOST_USER_GET_VRING_BASE]: STATE,
  [vu.VHOST_USER_GET_PROTOCOL_FEATURES]: NOTHING,
  [vu.VHOST_USER_SET_PROTOCOL_FEATURES]: U64,
  [vu.VHOST_USER_GET_QUEUE_NUM]: NOTHING,
  [vu.VHOST_USER_SET_VRING_ENABLE]: STATE,
  [vu.VHOST_USER_SET_BACKEND_REQ_FD]: ONE_FD,
  [vu.VHOST_USER_GET_INFLIGHT_FD]: { bytes: vu.VHOST_USER_INFLIGHT_SIZE, fdCount: 0 },
  [vu.VHOST_USER_SET_INFLIGHT_FD]: { bytes: vu.VHOST_USER_INFLIGHT_SIZE, fdCount: 1 },
  [vu.VHOST_USER_RESET_DEVICE]: NOTHING,
  [vu.VHOST_USER_GET_MAX_MEM_SLOTS]: NOTHING,
  [vu.VHOST_USER_ADD_MEM_REG]: { bytes: 8 + vu.VHOST_USER_MEMORY_REGION_SIZE, fdCount: 1 },
  [vu.VHOST_USER_SET_STATUS]: U64,
  [vu.VHOST_USER_GET_STATUS]: NOTHING,
};

/** What is wrong with its size or its descriptors; undefined when nothing is. */
export function checkShape({ request, payload, fds }: Message): string | undefined {
  const { bytes } = payload;
  const wrongSize = `Invalid size ${bytes} of request: ${request}`;
  const wrongFds = `Invalid fds in request: ${request}`;
  switch (request) {
    case vu.VHOST_USER_SET_MEM_TABLE: {
      const count = bytes < vu.VHOST_USER_MEMORY_REGIONS ? 0 : payload.u32(0);
      if (count > vu.VHOST_MEMORY_BASELINE_NREGIONS || bytes < memoryTableBytes(count)) {
        return wrongSize;
      }
      return fds.length === count ? undefined : wrongFds;
    }
    case vu.VHOST_USER_REM_MEM_REG:
      // One descriptor is allowed, and is not looked at.
      if (bytes < 8 + vu.VHOST_USER_MEMORY_REGION_SIZE) return wrongSize;
      return fds.length <= 1 ? undefined : wrongFds;
    case vu.VHOST_USER_SET_VRING_KICK:
    case vu.VHOST_USER_SET_VRING_CALL:
    case vu.VHOST_USER_SET_VRING_ERR: {
      if (bytes < 8) return wrongSize;
      const isWithout = (payload.u32(0) & vu.VHOST_USER_VRING_NOFD_MASK) !== 0;
      return isWithout || fds.length === 1 ? undefined : wrongFds;
    }
    case vu.VHOST_USER_GET_CONFIG:
    case vu.VHOST_USER_SET_CONFIG: {
      const header = vu.VHOST_USER_CONFIG_HDR_SIZE;
      if (bytes < header || bytes < header + payload.u32(4)) return wrongSize;
      return fds.length === 0 ? undefined : wrongFds;
    }
  }
  const shape = SHAPES[request];
  if (shape === undefined) return `Unhandled request: ${request}`;
  if (bytes < shape.bytes) return wrongSize;
  return fds.length === shape.fdCount ? undefined : wrongFds;
}

function memoryTableBytes(count: number): number {
  return vu.VHOST_USER_MEMORY_REGIONS + count * vu.VHOST_USER_MEMORY_REGION_SIZE;
}
