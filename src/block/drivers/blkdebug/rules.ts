/**
 * The rules of blkdebug: which events arm which errors, and which request an armed error hits.
 * Thread: iothread. Spec: qapi/block-core.json BlkdebugInjectErrorOptions, BlkdebugSetStateOptions
 */
import { EIO } from "../../../runtime/errno.ts";
import { SECTOR_BYTES } from "../../description.ts";

/** BlkdebugEvent: what happens in or above the node. */
export const EVENTS = [
  "l1_update",
  "l1_grow_alloc_table",
  "l1_grow_write_table",
  "l1_grow_activate_table",
  "l2_load",
  "l2_update",
  "l2_update_compressed",
  "l2_alloc_cow_read",
  "l2_alloc_write",
  "read_aio",
  "read_backing_aio",
  "read_compressed",
  "write_aio",
  "write_compressed",
  "vmstate_load",
  "vmstate_save",
  "cow_read",
  "cow_write",
  "reftable_load",
  "reftable_grow",
  "reftable_update",
  "refblock_load",
  "refblock_update",
  "refblock_update_part",
  "refblock_alloc",
  "refblock_alloc_hookup",
  "refblock_alloc_write",
  "refblock_alloc_write_blocks",
  "refblock_alloc_write_table",
  "refblock_alloc_switch_table",
  "cluster_alloc",
  "cluster_alloc_bytes",
  "cluster_free",
  "flush_to_os",
  "flush_to_disk",
  "pwritev_rmw_head",
  "pwritev_rmw_after_head",
  "pwritev_rmw_tail",
  "pwritev_rmw_after_tail",
  "pwritev",
  "pwritev_zero",
  "pwritev_done",
  "empty_image_prepare",
  "l1_shrink_write_table",
  "l1_shrink_free_l2_clusters",
  "cor_write",
  "cluster_alloc_space",
  "none",
] as const;
export type BlkdebugEvent = (typeof EVENTS)[number];

export const IO_TYPES = [
  "read",
  "write",
  "write-zeroes",
  "discard",
  "flush",
  "block-status",
] as const;
export type BlkdebugIoType = (typeof IO_TYPES)[number];

/** BlkdebugInjectErrorOptions */
export interface InjectError {
  readonly event: BlkdebugEvent;
  readonly state?: number;
  readonly iotype?: BlkdebugIoType;
  readonly errno?: number;
  readonly "delay-ns"?: number;
  readonly sector?: number;
  readonly once?: boolean;
  readonly immediately?: boolean;
}

/** BlkdebugSetStateOptions */
export interface SetState {
  readonly event: BlkdebugEvent;
  readonly state?: number;
  readonly new_state: number;
}

export type PermissionName = "consistent-read" | "write" | "write-unchanged" | "resize";

/** BlockdevOptionsBlkdebug */
export interface BlkdebugOptions {
  readonly config?: string;
  readonly align?: number;
  readonly "max-transfer"?: number;
  readonly "opt-write-zero"?: number;
  readonly "max-write-zero"?: number;
  readonly "opt-discard"?: number;
  readonly "max-discard"?: number;
  readonly "inject-error"?: readonly InjectError[];
  readonly "set-state"?: readonly SetState[];
  readonly "take-child-perms"?: readonly PermissionName[];
  readonly "unshare-child-perms"?: readonly PermissionName[];
}

/** What a request meets. */
export interface Fault {
  /** 0 or -errno. */
  readonly result: number;
  readonly delayNs: number;
}

/** Structured-cloneable. */
export interface RulesState {
  /** Without those that were for once. */
  readonly injectErrors: InjectError[];
  readonly state: number;
  /** Some of these. */
  readonly armed: InjectError[];
}

const NO_SECTOR = -1;
const INITIAL_STATE = 1;

export class Rules {
  #injectErrors: InjectError[];
  #setStates: readonly SetState[];
  #state = INITIAL_STATE;
  #armed: InjectError[] = [];

  constructor(injectErrors: readonly InjectError[], setStates: readonly SetState[]) {
    this.#injectErrors = [...injectErrors];
    this.#setStates = setStates;
  }

  /** What has happened so far, for restore(). */
  save(): RulesState {
    return { injectErrors: this.#injectErrors, state: this.#state, armed: this.#armed };
  }

  restore({ injectErrors, state, armed }: RulesState): void {
    this.#injectErrors = injectErrors;
    this.#state = state;
    this.#armed = armed;
  }

  /** Errors of this event take the place of all that were armed; then the state changes. */
  onEvent(event: BlkdebugEvent): void {
    const holds = (rule: { event: BlkdebugEvent; state?: number }) =>
      rule.event === event && (!rule.state || rule.state === this.#state);
    const armed = this.#injectErrors.filter(holds);
    if (armed.length > 0) this.#armed = armed;
    // The first one that was given has the last word.
    const next = this.#setStates.find(holds);
    if (next !== undefined) this.#state = next.new_state;
  }

  /** Null when the request goes on as if nothing were. `bytes` is 0 for a flush. */
  faultOf(ioType: BlkdebugIoType, offset: number, bytes: number): Fault | null {
    const rule = this.#armed.find(({ iotype, sector = NO_SECTOR }) => {
      // Queries of the status fail only when they are asked to.
      if (iotype === undefined ? ioType === "block-status" : iotype !== ioType) return false;
      const at = sector * SECTOR_BYTES;
      return sector === NO_SECTOR || (at >= offset && at < offset + bytes);
    });
    if (rule === undefined) return null;
    if (rule.once === true) {
      this.#armed = this.#armed.filter((other) => other !== rule);
      this.#injectErrors = this.#injectErrors.filter((other) => other !== rule);
    }
    const { errno = EIO, "delay-ns": delayNs = 0 } = rule;
    return { result: errno === 0 ? 0 : -errno, delayNs };
  }
}
