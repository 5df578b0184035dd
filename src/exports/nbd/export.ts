/**
 * One NBD export on the iothread of its node: its clients, their end, and their leave for another
 * iothread. Thread: iothread.
 */
import type { DirtyBitmap } from "../../bitmaps/dirty-bitmap.ts";
import type { BlockBackend } from "../../block/backend.ts";
import { assert } from "../../util/error.ts";
import { NbdConnection } from "./connection.ts";
import type { NbdConnections } from "./connections.ts";
import type { Session } from "./handshake.ts";
import { Receiver } from "./receiver.ts";

/** How long clients may take to come to the end of a request, with its reply sent. */
const SUSPEND_NS_MAX = 200_000_000;

/** A client between two requests. All of it is the receiver's. */
export interface NbdClient {
  readonly fd: number;
  readonly session: Session;
  /** What it already sent of its next requests. */
  readonly early: Uint8Array;
}

export interface NbdExportParts {
  readonly connections: NbdConnections;
  readonly backend: BlockBackend;
  /** What the handshake told: fixed while the export lives. */
  readonly bytes: number;
  readonly readOnly: boolean;
  /** What contexts from FIRST_BITMAP_ID on show. */
  readonly bitmaps: readonly DirtyBitmap[];
}

export class NbdExport {
  /** A connection came or went. */
  onConnectionsChanged: () => void = () => {};
  #parts: NbdExportParts;
  #clients = new Set<NbdConnection>();
  /** Adopted, and waiting for a buffer. */
  #arriving = 0;
  #closing = false;
  #onEmpty: (() => void)[] = [];
  /** While it is suspended: the clients that are between two requests. */
  #idle: Set<NbdConnection> | null = null;
  #onAllIdle: () => void = () => {};

  constructor(parts: NbdExportParts) {
    this.#parts = parts;
  }

  get connectionCount(): number {
    return this.#clients.size + this.#arriving;
  }

  /** It takes no clients and no requests now. */
  get suspended(): boolean {
    return this.#idle !== null;
  }

  /** Serves the client from here on. */
  adopt({ fd, session, early }: NbdClient): void {
    assert(!this.suspended, "a suspended export takes no clients");
    const { connections, backend, bytes, readOnly, bitmaps } = this.#parts;
    const { reactor } = connections;
    this.#arriving++;
    reactor.spawn(async () => {
      const receiveAt = await reactor.allocate(Receiver.bytesFor(early.length));
      this.#arriving--;
      const connection = new NbdConnection({
        connections,
        backend,
        bitmaps,
        fd,
        session,
        rules: { mode: session.mode, exportBytes: bytes, readOnly },
        receiveAt,
        early,
        onClosed: () => {
          this.#clients.delete(connection);
          this.#idle?.delete(connection);
          this.onConnectionsChanged();
          this.#checkEmpty();
          this.#checkIdle();
        },
      });
      this.#clients.add(connection);
      if (this.#closing) connection.close();
      else if (this.#idle !== null) this.#suspend(connection);
      else connection.start();
    });
  }

  /**
   * Takes no more requests; resolves true once all clients are between two requests. False: some
   * client doesn't come to the end of its request, or doesn't take its reply; then all go on.
   */
  suspend(): Promise<boolean> {
    assert(!this.#closing && !this.suspended, "an export that serves is suspended");
    const { reactor } = this.#parts.connections;
    this.#idle = new Set();
    return new Promise((resolve) => {
      const end = (all: boolean): void => {
        reactor.timers.clear(timer);
        this.#onAllIdle = () => {};
        reactor.asyncResumed();
        resolve(all);
      };
      const timer = reactor.timers.set(reactor.nowNs() + SUSPEND_NS_MAX, () => {
        this.resume();
        end(false);
      });
      this.#onAllIdle = () => end(true);
      for (const client of [...this.#clients]) this.#suspend(client);
      this.#checkIdle();
    });
  }

  /** Goes on where suspend() has stopped. */
  resume(): void {
    assert(this.suspended, "only a suspended export is resumed");
    this.#idle = null;
    for (const client of [...this.#clients]) client.resume();
  }

  /** Gives all clients to the caller; after suspend(). For good. */
  handOver(): NbdClient[] {
    assert(this.#idle?.size === this.#clients.size, "all clients are between two requests");
    this.#closing = true;
    const clients = [...this.#clients].map((client) => client.handOver());
    this.#clients.clear();
    return clients;
  }

  /** Drops all clients; resolves when the last request has ended. For good. */
  closeConnections(): Promise<void> {
    assert(!this.#closing, "an export is closed once");
    this.#closing = true;
    return new Promise((resolve) => {
      this.#onEmpty.push(resolve);
      for (const client of [...this.#clients]) client.close();
      this.#checkEmpty();
    });
  }

  #suspend(client: NbdConnection): void {
    client.suspend(() => {
      this.#idle!.add(client);
      this.#checkIdle();
    });
  }

  #checkIdle(): void {
    if (this.#idle === null || this.#arriving > 0) return;
    if (this.#idle.size === this.#clients.size) this.#onAllIdle();
  }

  #checkEmpty(): void {
    if (!this.#closing || this.connectionCount > 0) return;
    this.#parts.connections.reactor.asyncResumed();
    for (const resolve of this.#onEmpty.splice(0)) resolve();
  }
}
