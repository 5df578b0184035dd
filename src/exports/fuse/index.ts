/**
 * The export type fuse as main sees it: its options, its mounts and their life. The protocol is
 * spoken on the iothread of the node. Thread: main.
 *
 * Nothing here waits for a file system of its own on this thread: see MountSystem.
 * Spec: qapi/block-export.json BlockExportOptionsFuse
 */
import { PERM_RESIZE } from "../../block/node.ts";
import type { IothreadEvent } from "../../iothread/messages.ts";
import type { Iothreads } from "../../iothread/pool.ts";
import { bool, doc, enumeration, optional, str } from "../../qapi/scalars.ts";
import { settlesWithin } from "../../util/deadline.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { BlockExport, ExportType } from "../export.ts";
import { HostedExports } from "../hosted.ts";
import { type AllowOther, alreadyExported, type FuseMount, mountOver } from "./mount.ts";
import type { MountSystem } from "./mount-system.ts";
import type { FuseOptions, StillOpen } from "./service.ts";
import { abortMount, find, leave, unmount } from "./unmount.ts";

const members = {
  mountpoint: doc(str, "Path of the regular file over which the export appears"),
  growable: optional(bool, "Writes past the end make the node longer (default: false)"),
  "allow-other": optional(
    enumeration("FuseExportAllowOther", ["off", "on", "auto"]),
    "Let other users in; auto: if that is permitted (default: auto)",
  ),
};

interface Options {
  readonly mountpoint: string;
  readonly growable?: boolean;
  readonly "allow-other"?: AllowOther;
}

/** How long a monitor's deletion waits for files to be written back: then its event tells. */
const REPLY_MS_MAX = 1000;

export interface FuseExportsParts {
  readonly system: MountSystem;
  readonly iothreads: Pick<Iothreads, "onEvent">;
  /** Deletes an export. */
  readonly endExport: (id: string) => Promise<void>;
  readonly log: Log;
  readonly replyMsMax?: number;
}

interface Mounted {
  readonly mount: FuseMount;
  /** create() has returned, or is about to. */
  isReady: boolean;
  /** Its session is over. */
  hasEnded: boolean;
  /** From its deletion on. */
  unmounting: Promise<void> | null;
}

export class FuseExports {
  readonly exportType: ExportType;
  #parts: FuseExportsParts;
  #hosted = new HostedExports("fuse");
  /** By id. */
  #mounted = new Map<string, Mounted>();
  /** As the users named them; also of exports that are being made. */
  #mountpoints = new Set<string>();

  constructor(parts: FuseExportsParts) {
    this.#parts = parts;
    this.exportType = {
      name: "fuse",
      members,
      allowsInactive: false,
      create: (exp) => this.#create(exp),
      requestShutdown: (exp, safe) => this.#requestShutdown(exp, safe),
      delete: (exp) => this.#delete(exp),
      suspend: (exp) => this.#hosted.suspend(exp),
      resume: (exp) => this.#hosted.resume(exp),
    };
    parts.iothreads.onEvent((_, event) => this.#onEvent(event));
  }

  /** Device numbers of the mounts. Who serves one must not wait for it. */
  get devices(): number[] {
    return [...this.#mounted.values()].map(({ mount }) => mount.dev);
  }

  /** At once, for a process that ends: nobody waits for it any more, and no mount stays. */
  abort(): void {
    for (const { mount } of this.#mounted.values()) abortMount(this.#parts.system, mount);
  }

  /** When all exports are gone. */
  close(): void {
    this.#parts.system.closeAll();
  }

  async #create(exp: BlockExport): Promise<void> {
    const { mountpoint, growable = false } = exp.options as unknown as Options;
    if (growable || exp.writable) {
      const { used, shared } = exp.permissions;
      await exp.setPermissions({ used: used | PERM_RESIZE, shared });
    }
    if (this.#mountpoints.has(mountpoint)) throw alreadyExported(mountpoint);
    this.#mountpoints.add(mountpoint);
    try {
      await this.#serve(exp);
    } catch (error) {
      this.#mountpoints.delete(mountpoint);
      throw error;
    }
  }

  async #serve(exp: BlockExport): Promise<void> {
    const { system, log } = this.#parts;
    const options = exp.options as unknown as Options;
    const mount = await mountOver(
      system,
      {
        path: options.mountpoint,
        writable: exp.writable,
        allowOther: options["allow-other"] ?? "auto",
        isOwn: (dev) => this.devices.includes(dev),
      },
      log,
    );
    const mounted: Mounted = { mount, isReady: false, hasEnded: false, unmounting: null };
    this.#mounted.set(exp.id, mounted);
    try {
      await this.#hosted.open(exp, {
        fd: mount.fd,
        growable: options.growable ?? false,
        allowOther: mount.allowOther,
        uid: system.uid,
        gid: system.gid,
      } satisfies FuseOptions);
    } catch (error) {
      // It has nobody who would write back.
      abortMount(system, mount);
      system.close(mount.fd);
      this.#mounted.delete(exp.id);
      throw error;
    }
    mounted.isReady = true;
    if (mounted.hasEnded) this.#end(exp.id, mounted);
  }

  /** Files that are open keep nobody from it, as with QSD; requests under way do, if `safe`. */
  async #requestShutdown(exp: BlockExport, safe: boolean): Promise<number> {
    const { system, log, replyMsMax = REPLY_MS_MAX } = this.#parts;
    const mounted = this.#get(exp);
    const { mount } = mounted;
    const found = await find(system, mount);
    try {
      const { clientCount, details } = await this.#hosted.requestShutdown(exp, safe);
      const stillOpen = details as StillOpen;
      mounted.unmounting = unmount({ system, mount, found, stillOpen, log });
      return (await settlesWithin(mounted.unmounting, replyMsMax)) ? clientCount : 1;
    } catch (error) {
      await leave(system, found);
      throw error;
    }
  }

  async #delete(exp: BlockExport): Promise<void> {
    const { mount, unmounting } = this.#get(exp);
    assert(unmounting !== null, "an export is asked to shut down before it is deleted");
    await unmounting;
    await this.#hosted.close(exp);
    // Only now: requests in flight are answered through it.
    this.#parts.system.close(mount.fd);
    this.#mounted.delete(exp.id);
    this.#mountpoints.delete(mount.path);
  }

  #onEvent(event: IothreadEvent): void {
    if (event.event !== "fuse-ended") return;
    const mounted = this.#mounted.get(event.exportId);
    if (mounted === undefined || mounted.hasEnded) return;
    mounted.hasEnded = true;
    if (mounted.isReady) this.#end(event.exportId, mounted);
  }

  /**
   * QSD differs: an export that was unmounted from outside stays listed, and can't be reached.
   */
  #end(id: string, mounted: Mounted): void {
    // Not before whoever adds it knows it.
    setTimeout(() => {
      // Another one may have its id by now.
      if (this.#mounted.get(id) !== mounted) return;
      this.#parts.endExport(id).catch((error) => {
        // Somebody deletes it already.
        if (!(error instanceof OutportError)) throw error;
      });
    }, 0);
  }

  #get({ id }: BlockExport): Mounted {
    const mounted = this.#mounted.get(id);
    assert(mounted !== undefined, `export '${id}' is mounted`);
    return mounted;
  }
}
