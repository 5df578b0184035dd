/**
 * Listens for the front-end of one export and serves one after the other; who comes meanwhile waits
 * in the backlog. Thread: iothread.
 * Spec: vhost-user.rst; QEMU's util/vhost-user-server.c for what becomes of faulty front-ends
 */
import { VIRTIO_BLK_CONFIG_WCE } from "../../abi/virtio-blk.ts";
import type { BlockBackend } from "../../block/backend.ts";
import type { Token } from "../../io/engine.ts";
import type { Reactor } from "../../io/reactor.ts";
import { strerror } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import { GuestMemory } from "../../virtio/guest-memory.ts";
import { VirtioBlk } from "../../virtio/virtio-blk.ts";
import type { Answer } from "./answer.ts";
import { BackendChannel } from "./backend-channel.ts";
import type { EventFds } from "./event-fds.ts";
import { encodeMessage, encodeU64, type Message } from "./message.ts";
import { MessageSocket } from "./message-socket.ts";
import { RingPolling } from "./ring-polling.ts";
import { Session } from "./session.ts";

/** After a failed accept: out of descriptors or memory, mostly. */
const ACCEPT_PAUSE_NS = 100_000_000;

export interface VhostUserServerParts {
  readonly reactor: Reactor;
  readonly eventFds: EventFds;
  readonly backend: BlockBackend;
  readonly exportId: string;
  readonly listenFd: number;
  readonly blockBytes: number;
  readonly queueCount: number;
  readonly serial: string;
  readonly log: Log;
}

interface Client {
  readonly socket: MessageSocket;
  readonly session: Session;
  readonly device: VirtioBlk;
  readonly polling: RingPolling;
}

export class VhostUserServer {
  #parts: VhostUserServerParts;
  #client: Client | null = null;
  /** Of the accept under way. */
  #acceptToken: Token | null = null;
  #stopping = false;
  #ended: Promise<void> | null = null;
  /** What the last driver wanted of the write cache; null: nothing yet. */
  #writeCache: number | null = null;

  constructor(parts: VhostUserServerParts) {
    this.#parts = parts;
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
    if (this.#acceptToken !== null) this.#parts.reactor.engine.cancel(this.#acceptToken);
  }

  /** Drops the front-end; resolves when its last request has ended. The listener stays open. */
  async stop(): Promise<void> {
    this.stopAccepting();
    this.#client?.socket.shutdown();
    await this.#ended;
  }

  /** The disk has another length. */
  resized(): void {
    this.#client?.session.configChanged();
  }

  async #serve(): Promise<void> {
    const { reactor, listenFd, log, exportId } = this.#parts;
    let failure = 0;
    while (!this.#stopping) {
      const fd = await reactor.op((engine, token) => {
        this.#acceptToken = token;
        engine.accept(listenFd, token);
      });
      this.#acceptToken = null;
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
    const fault = await this.#talk(client);
    if (fault !== null && !this.#stopping) log("error", `vu_panic: ${fault}`);
    client.polling.stop();
    this.#writeCache = client.device.config()[VIRTIO_BLK_CONFIG_WCE]!;
    // At once: the front-end may wait for an answer.
    client.socket.shutdown();
    await client.session.end();
    client.socket.close();
    this.#client = null;
    log("info", "client disconnected", { export: exportId });
  }

  /** Until the front-end leaves or is dropped. What it did wrong, or null. */
  async #talk({ socket, session }: Client): Promise<string | null> {
    for (;;) {
      const message = await socket.receive();
      if ("fault" in message) return message.fault;
      const answer = await session.handle(message).catch((error): Answer => {
        if (!(error instanceof OutportError)) throw error;
        return { refusal: error.message };
      });
      socket.closeAll(message.fds);
      if (answer !== null && "fault" in answer) return answer.fault;
      const reply = replyTo(message, answer);
      if (reply === undefined) continue;
      if (reply === null) return (answer as { refusal: string }).refusal;
      const fds = answer !== null && "payload" in answer ? (answer.fds ?? []) : [];
      const isSent = await socket.send(reply, fds);
      socket.closeAll(fds);
      if (!isSent) return null;
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
    if (this.#writeCache !== null) {
      device.setConfig(VIRTIO_BLK_CONFIG_WCE, Uint8Array.of(this.#writeCache));
    }
    const polling = new RingPolling(reactor, device, () => session.vrings.hasPolledRing);
    const session: Session = new Session({
      linux: reactor.linux,
      device,
      memory,
      eventFds,
      queueCount,
      onFault: (fault) => {
        if (!this.#stopping) log("error", `vu_panic: ${fault}`);
        socket.shutdown();
      },
      onPolledRing: () => polling.startTimer(),
      makeChannel: (channelFd) => new BackendChannel(reactor, channelFd, log),
    });
    return { socket, session, device, polling };
  }
}

/** Undefined: none; null: the front-end is not told, so it is dropped. */
function replyTo({ request, needsReply }: Message, answer: Answer): Uint8Array | null | undefined {
  if (answer !== null && "payload" in answer) return encodeMessage(request, answer.payload);
  if (needsReply) return encodeMessage(request, encodeU64(answer === null ? 0n : 1n));
  return answer === null ? undefined : null;
}
