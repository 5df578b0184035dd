/**
 * Between a FUSE session and what carries its requests: /dev/fuse (device.ts), or whatever else
 * brings the same structures. Thread: iothread.
 *
 * A transport calls FuseSink.onRequest() for each request, while FuseSink.accepts says yes; the
 * session answers each but FORGET and the like, there and then or later, by reply(). `at` names a
 * request: the position in reactor.memory of its payload, page-aligned so that nodes with direct
 * I/O can take it, and of the data that answer it. Nothing else is allocated for a request.
 *
 * To plug in another transport (queues of FUSE-over-io_uring): a class with these methods whose
 * `at` is the payload buffer of a ring entry. keep() is the same `at` then, and reply() writes
 * struct fuse_out_header into the entry and commits it. FUSE_INIT, FORGET, INTERRUPT and
 * notifications stay with /dev/fuse: a session may have several transports, whose first is the
 * device; each request goes back to where it came from.
 */

/** One request; the object is reused: what must last is taken out during onRequest(). */
export interface FuseRequest {
  /** FUSE_* */
  opcode: number;
  /** Its payload, if it has one; page-aligned. */
  at: number;
  /** Of struct fuse_in_header; valid until keep() or reply(). */
  headerAt: number;
  /** Of the structure that follows it; as headerAt. A multiple of 8. */
  argsAt: number;
  /** At least this much of it has come. */
  argsBytes: number;
  /** Of a WRITE: the data at `at`. */
  payloadBytes: number;
}

/** Who takes requests. */
export interface FuseSink {
  /** False: no request now; transport.takeMore() follows when it is true again. */
  readonly accepts: boolean;
  onRequest(request: FuseRequest, transport: FuseTransport): void;
  /** There will be no request any more: the mount is gone (-ENODEV), or something is broken. */
  onEnd(error: number): void;
}

export interface FuseTransport {
  /** Takes requests from now on: at first, and after pause(). */
  start(): void;
  /** Takes none; they wait in the kernel. Resolves when nothing of this is in flight. */
  pause(): Promise<void>;
  /** For good, after pause() and the last reply(). */
  close(): void;
  /** The sink accepts again. */
  takeMore(): void;
  /**
   * During onRequest(), for a request that isn't answered before that returns: room for `bytes`
   * (1 to 1 MiB) of answer; its payload stays. Returns its `at` from now on; header and arguments
   * are gone.
   */
  keep(bytes: number): number;
  /** Answers with 0 or -errno, and `bytes` at `at`. */
  reply(at: number, error: number, bytes: number): void;
  /** Ends a request that wants no answer. */
  drop(at: number): void;
  /** Of the device: the kernel is to ask for the attributes anew, the length first of all. */
  forgetAttributes?(): void;
}
