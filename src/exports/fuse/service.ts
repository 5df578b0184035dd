/**
 * The FUSE exports of one iothread. Thread: iothread.
 * Spec: qapi/block-export.json BlockExportOptionsFuse
 *
 * How main drives it, by the calls that every export type has (iothread/messages.ts):
 * - "export-open", after the mount: `options` is FuseOptions. From here on the kernel's requests,
 *   FUSE_INIT first, are answered; before that whoever looks at the mount point hangs.
 * - "export-shutdown": who waits for an answer is a client, who has the file open is none. The
 *   details are StillOpen. From here on no request waits for a limit: the mount is about to go,
 *   which waits for what the kernel has to write.
 * - "export-close": takes no more requests, lets those in flight finish, flushes. Dirty pages of
 *   shared mappings come in as writes: so unmount first (lazily if it must be), then call it, and
 *   close the descriptor after that, which ends what is still open on the mount with ENOTCONN.
 * - "export-suspend" and "export-resume": the descriptor is the same on every thread of the
 *   process; requests wait in the kernel meanwhile.
 * - The event "fuse-ended": the mount is gone, or the session can't go on. Once; "export-close"
 *   is still to come.
 */
import { BlockBackend } from "../../block/backend.ts";
import { type BlockNode, OP_FLUSH } from "../../block/node.ts";
import type { Reactor } from "../../io/reactor.ts";
import type { ExportOpen, IothreadEvent, ShutdownReply } from "../../iothread/messages.ts";
import { ESTALE, strerror } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { ExportService } from "../registry.ts";
import { FuseDevices } from "./devices.ts";
import { Passthrough, type PassthroughState } from "./passthrough.ts";
import { FuseSession, type SessionParts } from "./session.ts";

/** ExportOpen.options of this type. */
export interface FuseOptions {
  /**
   * Of /dev/fuse, mounted with rootmode of a regular file, `default_permissions` and
   * max_read=1048576. Stays main's to close, after "export-close" (or a failed "export-open").
   */
  readonly fd: number;
  readonly growable: boolean;
  /** The mount has allow_other: then mode bits for others, owner and group may be set. */
  readonly allowOther: boolean;
  /** First owner and group. */
  readonly uid: number;
  readonly gid: number;
}

/**
 * What programs have of an export that shuts down, at most:
 * - "nothing" that has not been written;
 * - "mappings", which are to be written back;
 * - "direct" access to the image by the kernel, which ends when it next looks at the attributes.
 */
export type StillOpen = "nothing" | "mappings" | "direct";

export interface FuseServiceParts {
  readonly reactor: Reactor;
  readonly findNode: (nodeName: string) => BlockNode;
  /** Gives a node another length, as Resize does. */
  readonly resizeNode: (nodeName: string, bytes: number, atLeast: boolean) => Promise<number>;
  readonly send: (event: IothreadEvent) => void;
  readonly log: Log;
}

/** An export that lives here. */
interface OpenExport {
  readonly backend: BlockBackend;
  readonly session: FuseSession;
  readonly passthrough: Passthrough;
}

type State = SessionParts["state"] & { readonly passthrough?: PassthroughState };

export class FuseService implements ExportService {
  readonly type = "fuse";
  #parts: FuseServiceParts;
  #devices: FuseDevices | null = null;
  #open = new Map<string, OpenExport>();

  constructor(parts: FuseServiceParts) {
    this.#parts = parts;
  }

  async open(params: ExportOpen): Promise<null> {
    const { uid, gid } = optionsOf(params);
    this.#serve(params, { uid, gid });
    return null;
  }

  shutdown(id: string, safe: boolean): ShutdownReply {
    const { backend, session, passthrough } = this.#find(id);
    if (safe && session.isBusy) throw new OutportError("in-use", `Export '${id}' is busy`);
    backend.hurry();
    const stillOpen: StillOpen = passthrough.shutdown();
    if (stillOpen === "direct") session.revoke();
    return { clientCount: session.isBusy ? 1 : 0, details: stillOpen };
  }

  async close(id: string): Promise<void> {
    const { backend, session, passthrough } = this.#find(id);
    this.#open.delete(id);
    backend.hurry();
    await session.stop();
    passthrough.close();
    const result = await backend.close();
    if (result < 0) {
      this.#parts.log("error", `Could not flush export '${id}': ${strerror(-result)}`);
    }
  }

  async suspend(id: string): Promise<State> {
    const { backend, session, passthrough } = this.#find(id);
    // Main gives lengths to nodes when it is done with what it does now: with this.
    if (session.isResizing) throw stays(id, "its length is about to change");
    // Requests that wait for a limit go on at once.
    backend.node.drainBegin?.();
    const isIdle = await session.pause();
    const result = isIdle && backend.writable ? await backend.request(OP_FLUSH, 0, 0, 0, 0) : 0;
    backend.node.drainEnd?.();
    if (!isIdle || result < 0) {
      session.start();
      throw stays(id, isIdle ? strerror(-result) : "its length is about to change");
    }
    this.#open.delete(id);
    await session.stop();
    await backend.close();
    return { ...session.state, passthrough: passthrough.handOver() };
  }

  async resume(params: ExportOpen, handover: unknown): Promise<void> {
    this.#serve(params, handover as State);
  }

  #serve(params: ExportOpen, state: State): void {
    const { reactor, findNode, resizeNode, send, log } = this.#parts;
    const { id, nodeName, writable, writethrough } = params;
    const { fd, growable, allowOther } = optionsOf(params);
    const backend = new BlockBackend(reactor, findNode(nodeName), { writable, writethrough });
    this.#devices ??= new FuseDevices(reactor);
    const { linux } = reactor;
    const passthrough = new Passthrough({
      linux,
      fd,
      exportId: id,
      // An overlay may take its place.
      get node() {
        return backend.node;
      },
      writable,
      writethrough,
      growable,
      log,
      state: state.passthrough,
    });
    const session = new FuseSession({
      devices: this.#devices,
      backend,
      fd,
      growable,
      allowOther,
      state,
      resize: async (bytes, atLeast) => {
        for (;;) {
          const { node } = backend;
          const result = await resizeNode(node.nodeName, bytes, atLeast);
          if (result !== -ESTALE || node === backend.node) return result;
        }
      },
      extras: Passthrough.extras,
      passthrough,
      onAgreed: () => {},
      onEnd: (error) => send({ event: "fuse-ended", exportId: id, error }),
    });
    backend.onResized = () => session.attributesChanged();
    this.#open.set(id, { backend, session, passthrough });
    session.start();
  }

  #find(id: string): OpenExport {
    const open = this.#open.get(id);
    assert(open !== undefined, `export '${id}' lives here`);
    return open;
  }
}

function optionsOf({ options }: ExportOpen): FuseOptions {
  return options as unknown as FuseOptions;
}

function stays(id: string, reason: string): OutportError {
  return new OutportError("in-use", `Export '${id}' stays: ${reason}`);
}
