/** One NBD export on the iothread of its node: its clients and their end. Thread: iothread. */
import type { BlockBackend } from "../../block/backend.ts";
import { assert } from "../../util/error.ts";
import { NbdConnection } from "./connection.ts";
import type { NbdConnections } from "./connections.ts";
import type { Session } from "./handshake.ts";
import { Receiver } from "./receiver.ts";

export interface NbdExportParts {
  readonly connections: NbdConnections;
  readonly backend: BlockBackend;
  /** What the handshake told: fixed while the export lives. */
  readonly bytes: number;
  readonly readOnly: boolean;
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

  constructor(parts: NbdExportParts) {
    this.#parts = parts;
  }

  get connectionCount(): number {
    return this.#clients.size + this.#arriving;
  }

  /**
   * Serves the client on socket `fd` from here on; the fd is this export's. `early`: what it sent
   * after its handshake.
   */
  adopt(fd: number, session: Session, early: Uint8Array): void {
    const { connections, backend, bytes, readOnly } = this.#parts;
    const { reactor } = connections;
    this.#arriving++;
    reactor.spawn(async () => {
      const receiveAt = await reactor.allocate(Receiver.bytesFor(early.length));
      this.#arriving--;
      const connection = new NbdConnection({
        connections,
        backend,
        fd,
        session,
        rules: { mode: session.mode, exportBytes: bytes, readOnly },
        receiveAt,
        early,
        onClosed: () => {
          this.#clients.delete(connection);
          this.onConnectionsChanged();
          this.#checkEmpty();
        },
      });
      this.#clients.add(connection);
      if (this.#closing) connection.close();
      else connection.start();
    });
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

  #checkEmpty(): void {
    if (!this.#closing || this.connectionCount > 0) return;
    this.#parts.connections.reactor.asyncResumed();
    for (const resolve of this.#onEmpty.splice(0)) resolve();
  }
}
