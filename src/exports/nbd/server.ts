/**
 * The NBD server on its iothread: listens, accepts within its limits, does the handshakes, and
 * hands over who enters transmission. Thread: iothread.
 *
 * Spec: qapi/block-export.json nbd-server-start
 */
import {
  IPPROTO_TCP,
  SHUT_RDWR,
  SO_SNDBUF,
  SOL_SOCKET,
  TCP_NODELAY,
} from "../../abi/linux-socket.ts";
import { makeToken } from "../../io/engine.ts";
import { closeListener, type Listener, openListeners } from "../../io/listen.ts";
import { Memory } from "../../io/memory.ts";
import type { CancellableOp, Reactor } from "../../io/reactor.ts";
import type { ListenAddress, NbdServerStart } from "../../iothread/messages.ts";
import { strerror } from "../../runtime/errno.ts";
import { assert } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import { trace } from "../../util/trace.ts";
import type { ExportTable } from "./export-table.ts";
import { Handshake, type Session } from "./handshake.ts";
import { HandshakeConnection } from "./handshake-connection.ts";

/** Handshakes at a time; whoever is over it waits in the listener's backlog. */
const HANDSHAKES_MAX = 4096;
/** What one receive of a handshake takes. */
const SCRATCH_BYTES = 16 * 1024;
/** After a failed accept: out of descriptors or memory, mostly. */
const ACCEPT_PAUSE_NS = 100_000_000;
/** So that a large reply seldom waits for its reader. */
const UNIX_SEND_BUFFER_BYTES = 2 * 1024 * 1024;

/** A client that enters transmission. All of it is the receiver's. */
export interface NbdEntrant {
  readonly fd: number;
  readonly session: Session;
  /** What it already sent of its requests. */
  readonly early: Uint8Array;
}

export interface IothreadNbdServerParts {
  readonly reactor: Reactor;
  readonly exports: ExportTable;
  /** Takes the client; release() is due when its connection has ended. */
  readonly onSession: (entrant: NbdEntrant) => void;
  readonly log: Log;
}

interface OpenListener extends Listener {
  /** Of the accept in flight. */
  accepting: CancellableOp | null;
}

/** One per iothread; starts and stops any number of times. */
export class IothreadNbdServer {
  #parts: IothreadNbdServerParts;
  #options: NbdServerStart | null = null;
  #listeners: OpenListener[] = [];
  #acceptLoops: Promise<void>[] = [];
  #scratch: Memory;
  #pollKind: number;
  #handshakes: (HandshakeConnection | null)[] = [];
  #freeSlots: number[] = [];
  #handshakeCount = 0;
  /** Handshakes and connections. */
  #clientCount = 0;
  /** Resolve when something changed. */
  #waiters: (() => void)[] = [];
  #stopping = false;

  constructor(parts: IothreadNbdServerParts) {
    this.#parts = parts;
    this.#scratch = new Memory(parts.reactor.linux, SCRATCH_BYTES);
    this.#pollKind = parts.reactor.register((slot) => this.#advance(slot));
  }

  get running(): boolean {
    return this.#options !== null;
  }

  /** Throws OutportError when no address can be listened on. */
  start(options: NbdServerStart): void {
    assert(!this.running, "a server starts when it is stopped");
    this.#listen(options.addresses, options);
    this.#options = options;
  }

  /** More addresses for the server that runs. Throws as start() does. */
  listenAlso(addresses: readonly ListenAddress[]): void {
    assert(this.#options !== null, "a server listens also when it runs");
    this.#listen(addresses, this.#options);
  }

  /** Clients in handshake or transmission. */
  get clientCount(): number {
    return this.#clientCount;
  }

  /** The connection of an entrant has ended; another client may come. */
  release(): void {
    assert(this.#clientCount > 0, "a client is released once");
    this.#clientCount--;
    if (trace.nbd_client_disconnect.enabled) {
      trace.nbd_client_disconnect.write(`clients ${this.#clientCount}`);
    }
    this.#wake();
  }

  /** Ends listening and handshakes; sockets in the file system are gone when it resolves. */
  async stop(): Promise<void> {
    assert(this.running && !this.#stopping, "a server stops when it runs");
    const { reactor } = this.#parts;
    this.#stopping = true;
    for (const { accepting } of this.#listeners) accepting?.cancel();
    for (const connection of this.#handshakes) {
      if (connection !== null) reactor.linux.shutdown(connection.fd, SHUT_RDWR);
    }
    this.#wake();
    await Promise.all(this.#acceptLoops);
    while (this.#handshakeCount > 0) await this.#change();
    for (const listener of this.#listeners) closeListener(reactor.linux, listener);
    this.#listeners = [];
    this.#acceptLoops = [];
    this.#options = null;
    this.#stopping = false;
  }

  #listen(addresses: readonly ListenAddress[], options: NbdServerStart): void {
    const { log } = this.#parts;
    for (const listener of openListeners(this.#parts.reactor.linux, addresses)) {
      // QSD differs: it never tells which port it chose for port 0.
      const { port } = listener;
      if (trace.nbd_server_listen.enabled)
        trace.nbd_server_listen.write(`${options.label} ${port}`);
      log("info", `listening on ${options.label}`, port > 0 ? { port } : {});
      this.#accept({ ...listener, accepting: null }, options);
    }
  }

  #accept(listener: OpenListener, options: NbdServerStart): void {
    this.#listeners.push(listener);
    this.#parts.reactor.spawn(() => {
      const loop = this.#acceptFrom(listener, options);
      this.#acceptLoops.push(loop);
      return loop;
    });
  }

  async #acceptFrom(listener: OpenListener, options: NbdServerStart): Promise<void> {
    const { reactor, log } = this.#parts;
    let failure = 0;
    while (!this.#stopping) {
      listener.accepting = reactor.cancellableOp((engine, token) =>
        engine.accept(listener.fd, token),
      );
      const fd = await listener.accepting.result;
      listener.accepting = null;
      if (fd >= 0) {
        failure = 0;
        while (this.#full(options) && !this.#stopping) await this.#change();
        if (this.#stopping) reactor.linux.close(fd);
        else this.#begin(fd, listener, options.handshakeSecondsMax);
      } else if (!this.#stopping) {
        // Said once, however long it lasts.
        if (fd !== failure) {
          log("warn", `Failed to accept a client on ${options.label}: ${strerror(fd)}`);
        }
        failure = fd;
        await reactor.sleep(ACCEPT_PAUSE_NS);
      }
    }
  }

  #full(options: NbdServerStart): boolean {
    const { connectionsMax } = options;
    if (connectionsMax > 0 && this.#clientCount >= connectionsMax) return true;
    return this.#handshakeCount >= HANDSHAKES_MAX;
  }

  /** Resolves when a client is gone, or the server stops. */
  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  #wake(): void {
    if (this.#waiters.length === 0) return;
    const waiters = this.#waiters;
    this.#waiters = [];
    this.#parts.reactor.spawn(async () => {
      for (const resolve of waiters) resolve();
    });
  }

  #begin(fd: number, listener: Listener, secondsMax: number): void {
    const { reactor, exports } = this.#parts;
    const { linux, timers, nowNs } = reactor;
    if (listener.kind === "inet") linux.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (listener.kind === "unix") {
      linux.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, UNIX_SEND_BUFFER_BYTES);
    }
    if (trace.nbd_client_connect.enabled) {
      trace.nbd_client_connect.write(`fd ${fd} clients ${this.#clientCount + 1}`);
    }
    if (trace.nbd_negotiate_begin.enabled) trace.nbd_negotiate_begin.write(`fd ${fd}`);
    const connection = new HandshakeConnection(linux, this.#scratch, fd, new Handshake(exports));
    const slot = this.#freeSlots.pop() ?? this.#handshakes.length;
    this.#handshakes[slot] = connection;
    this.#handshakeCount++;
    this.#clientCount++;
    if (secondsMax > 0) {
      // The poll in flight sees the shutdown and ends the connection.
      connection.timer = timers.set(nowNs() + secondsMax * 1e9, () => {
        if (trace.nbd_handshake_timer_cb.enabled) trace.nbd_handshake_timer_cb.write(`fd ${fd}`);
        linux.shutdown(fd, SHUT_RDWR);
      });
    }
    this.#advance(slot);
  }

  /** The socket is ready for something, or new. */
  #advance(slot: number): void {
    const connection = this.#handshakes[slot]!;
    assert(connection !== null, "a handshake polls while it lives");
    const { reactor } = this.#parts;
    const progress = connection.advance();
    if (typeof progress === "object") {
      reactor.engine.poll(connection.fd, progress.wait, makeToken(this.#pollKind, slot));
      return;
    }
    if (connection.timer !== null) reactor.timers.clear(connection.timer);
    this.#handshakes[slot] = null;
    this.#freeSlots.push(slot);
    this.#handshakeCount--;
    this.#finish(connection);
    this.#wake();
  }

  #finish(connection: HandshakeConnection): void {
    const { reactor, onSession, log } = this.#parts;
    const { fd, handshake, rest } = connection;
    if (handshake.failure !== "") {
      if (trace.nbd_negotiate_fail.enabled) {
        trace.nbd_negotiate_fail.write(`fd ${fd} ${handshake.failure}`);
      }
      log("info", `option negotiation failed: ${handshake.failure}`);
    }
    if (handshake.session !== null && handshake.outputBytes === 0 && !this.#stopping) {
      const { exportId, mode } = handshake.session;
      if (trace.nbd_negotiate_success.enabled) trace.nbd_negotiate_success.write(`fd ${fd}`);
      log("info", "client connected", { export: exportId, mode, clients: this.#clientCount });
      onSession({ fd, session: handshake.session, early: rest });
      return;
    }
    // At once, even if some other part of the process holds the socket.
    reactor.linux.shutdown(fd, SHUT_RDWR);
    reactor.linux.close(fd);
    this.#clientCount--;
  }
}
