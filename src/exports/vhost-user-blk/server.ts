/**
 * Listens for the front-end of one export and serves one after the other; who comes meanwhile waits
 * in the backlog. Thread: iothread.
 * Spec: vhost-user.rst; QEMU's util/vhost-user-server.c for what becomes of faulty front-ends
 */
import type { BlockBackend } from "../../block/backend.ts";
import { OP_FLUSH } from "../../block/node.ts";
import type { CancellableOp, Reactor } from "../../io/reactor.ts";
import { strerror } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import { GuestMemory } from "../../virtio/guest-memory.ts";
import { VirtioBlk } from "../../virtio/virtio-blk.ts";
import type { Answer } from "./answer.ts";
import { BackendChannel } from "./backend-channel.ts";
import type { EventFds } from "./event-fds.ts";
import { encodeMessage, encodeU64, type Message } from "./message.ts";
import { type Ended, MessageSocket } from "./message-socket.ts";
import { RingPolling } from "./ring-polling.ts";
import { Session, type SessionState } from "./session.ts";

/** After a failed accept: out of descriptors or memory, mostly. */
const ACCEPT_PAUSE_NS = 100_000_000;
/** How long a front-end may take to end a message before a move. */
const INTERRUPT_ATTEMPTS = 200;
const INTERRUPT_PAUSE_NS = 1_000_000;
/** Refusals of one session that are worth a line in the log. */
const LOGGED_REFUSALS_MAX = 16;

export interface VhostUserServerParts {
  readonly reactor: Reactor;
  readonly eventFds: EventFds;
  readonly backend: BlockBackend;
  readonly exportId: string;
  readonly listenFd: number;
  readonly blockBytes: number;
  readonly queueCount: number;
  readonly serial: string;
  /** Of the server that was there before; null: there was none. */
  readonly state: ServerState | null;
  readonly log: Log;
}

interface Client {
  readonly socket: MessageSocket;
  readonly session: Session;
  readonly device: VirtioBlk;
  readonly polling: RingPolling;
  /** Nothing is read from it any more. */
  isLeaving: boolean;
  /** Resolves when it is not this server's any more. */
  readonly left: Promise<void>;
  readonly onLeft: () => void;
}

/** A front-end on its way to another thread. */
interface MovingClient {
  readonly fd: number;
  readonly session: SessionState;
}

/** What one server leaves to the next. */
export interface ServerState {
  /** See VirtioBlk. */
  readonly writeCache: boolean | null;
  readonly client: MovingClient | null;
}

export class VhostUserServer {
  #parts: VhostUserServerParts;
  #client: Client | null = null;
  #accepting: CancellableOp | null = null;
  #stopping = false;
  #ended: Promise<void> | null = null;
  /** See VirtioBlk: what the last driver wanted of the write cache. */
  #writeCache: boolean | null;
  /** A front-end that comes from another thread, or goes to one. */
  #moving: MovingClient | null;

  constructor(parts: VhostUserServerParts) {
    this.#parts = parts;
    this.#writeCache = parts.state?.writeCache ?? null;
    this.#moving = parts.state?.client ?? null;
  }

  get hasClient(): boolean {
    return this.#client !== null;
  }

  start(): void {
    assert(this.#ended === null, "a server starts once");
    this.#parts.reactor.spawn(() => {
      this.#ended = this.#serve();
      return this.#ended;
    });
  }

  /** The front-end that is there, if there is one, is the last. */
  stopAccepting(): void {
    this.#stopping = true;
    this.#accepting?.cancel();
  }

  /** Drops the front-end; resolves when its last request has ended. The listener stays open. */
  async stop(): Promise<void> {
    this.stopAccepting();
    this.#client?.socket.shutdown();
    await this.#ended;
  }

  /**
   * Instead of stop(): what a server elsewhere goes on with, front-end and all. Throws OutportError
   * of kind in-use when the front-end is in the middle of a message, and nothing has changed.
   */
  async suspend(): Promise<ServerState> {
    while (this.#client !== null && this.#moving === null) {
      if (!(await this.#interrupt(this.#client))) {
        const text = `The front-end of export '${this.#parts.exportId}' does not end its message`;
        throw new OutportError("in-use", text);
      }
    }
    this.stopAccepting();
    await this.#ended;
    return { writeCache: this.#writeCache, client: this.#moving };
  }

  /** The disk has another length. */
  resized(): void {
    this.#client?.session.configChanged();
  }

  async #serve(): Promise<void> {
    const { reactor, listenFd, log, exportId } = this.#parts;
    let failure = 0;
    await this.#serveMoved();
    while (!this.#stopping && this.#moving === null) {
      this.#accepting = reactor.cancellableOp((engine, token) => engine.accept(listenFd, token));
      const fd = await this.#accepting.result;
      this.#accepting = null;
      if (fd >= 0) {
        failure = 0;
        const client = this.#stopping ? null : this.#admit(fd);
        if (client === null) reactor.linux.close(fd);
        else await this.#serveClient(client);
      } else if (!this.#stopping) {
        // Said once, however long it lasts.
        if (fd !== failure) {
          log("warn", `Failed to accept a client of export '${exportId}': ${strerror(fd)}`);
        }
        failure = fd;
        await reactor.sleep(ACCEPT_PAUSE_NS);
      }
    }
  }

  async #serveMoved(): Promise<void> {
    const moved = this.#moving;
    this.#moving = null;
    if (moved === null) return;
    const client = this.#admit(moved.fd);
    if (client === null) {
      this.#parts.reactor.linux.close(moved.fd);
      return;
    }
    const answer = client.session.attach(moved.session);
    // The front-end connects anew.
    if (answer !== null && "fault" in answer) this.#drop(client.socket, answer.fault);
    await this.#serveClient(client);
  }

  /** True: it is on its way, or has left. False: it stays. */
  async #interrupt(client: Client): Promise<boolean> {
    client.socket.interrupt();
    for (let left = INTERRUPT_ATTEMPTS; left > 0; left--) {
      if (client.isLeaving) break;
      await this.#parts.reactor.sleep(INTERRUPT_PAUSE_NS);
    }
    const stays = client.socket.endInterrupt() && !client.isLeaving;
    if (stays) return false;
    await client.left;
    return true;
  }

  #drop(socket: MessageSocket, fault: string): void {
    if (!this.#stopping) this.#parts.log("error", `vu_panic: ${fault}`);
    socket.shutdown();
  }

  /** Null: there is no memory left for it. */
  #admit(fd: number): Client | null {
    try {
      return this.#makeClient(fd);
    } catch (error) {
      if (!(error instanceof OutportError)) throw error;
      this.#parts.log("error", `Cannot serve a client: ${error.message}`);
      return null;
    }
  }

  async #serveClient(client: Client): Promise<void> {
    const { log, exportId } = this.#parts;
    this.#client = client;
    log("info", "client connected", { export: exportId });
    const { fault, isInterrupted } = await this.#talk(client);
    client.isLeaving = true;
    if (fault !== null && !this.#stopping) log("error", `vu_panic: ${fault}`);
    client.polling.stop();
    if (isInterrupted === true) {
      const session = await client.session.detach();
      this.#writeCache = client.device.writeCache;
      this.#moving = { fd: client.socket.detach(), session };
      this.#client = null;
      client.onLeft();
      return;
    }
    this.#writeCache = client.device.writeCache;
    // At once: the front-end may wait for an answer.
    client.socket.shutdown();
    await client.session.end();
    client.socket.close();
    this.#client = null;
    client.onLeft();
    log("info", "client disconnected", { export: exportId });
  }

  /** Until the front-end leaves, is dropped, or moves. */
  async #talk({ socket, session }: Client): Promise<Ended> {
    const { log, exportId } = this.#parts;
    let refusalCount = 0;
    for (;;) {
      const message = await socket.receive();
      if ("fault" in message) return message;
      const answer = await session.handle(message).catch((error): Answer => {
        if (!(error instanceof OutportError)) throw error;
        return { refusal: error.message };
      });
      socket.closeAll(message.fds);
      if (answer !== null && "fault" in answer) return answer;
      const reply = replyTo(message, answer);
      if (reply === undefined) continue;
      const refusal = answer !== null && "refusal" in answer ? answer.refusal : null;
      if (reply === null) return { fault: refusal };
      if (refusal !== null && refusalCount++ < LOGGED_REFUSALS_MAX) {
        log("warn", `vhost-user request ${message.request} of export '${exportId}': ${refusal}`);
      }
      const fds = answer !== null && "payload" in answer ? (answer.fds ?? []) : [];
      const isSent = await socket.send(reply, fds);
      socket.closeAll(fds);
      if (!isSent) return { fault: null };
    }
  }

  #makeClient(fd: number): Client {
    const { reactor, eventFds, backend, blockBytes, queueCount, serial, log } = this.#parts;
    const socket = new MessageSocket(reactor, fd);
    const memory = new GuestMemory(reactor.linux);
    const device = new VirtioBlk({
      reactor,
      backend,
      memory,
      serial,
      blockBytes,
      queueCount,
      writable: backend.writable,
      onCall: (index) => session.call(index),
      onBroken: (index) => session.broken(index),
    });
    device.writeCache = this.#writeCache;
    const polling = new RingPolling(reactor, device, () => session.vrings.hasPolledRing);
    const session: Session = new Session({
      linux: reactor.linux,
      device,
      memory,
      flush: () => backend.request(OP_FLUSH, 0, 0, 0, 0),
      eventFds,
      queueCount,
      onFault: (fault) => this.#drop(socket, fault),
      onPolledRing: () => polling.startTimer(),
      makeChannel: (channelFd) => new BackendChannel(reactor, channelFd, log),
    });
    const { promise: left, resolve: onLeft } = Promise.withResolvers<void>();
    return { socket, session, device, polling, isLeaving: false, left, onLeft };
  }
}

/** Undefined: none; null: the front-end is not told, so it is dropped. */
function replyTo({ request, needsReply }: Message, answer: Answer): Uint8Array | null | undefined {
  if (answer !== null && "payload" in answer) return encodeMessage(request, answer.payload);
  if (needsReply) return encodeMessage(request, encodeU64(answer === null ? 0n : 1n));
  return answer === null ? undefined : null;
}
