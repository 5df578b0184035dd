/**
 * Which clusters of the image file hold metadata: no guest data may ever be written there, and no
 * metadata over other metadata. Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst; qapi/block-core.json Qcow2OverlapCheckFlags
 */

/** As QSD's messages name them, by the check that covers them. */
export const METADATA_NAMES = {
  "main-header": "qcow2_header",
  "active-l1": "active L1 table",
  "active-l2": "active L2 table",
  "refcount-table": "refcount table",
  "refcount-block": "refcount block",
  "snapshot-table": "snapshot table",
  "inactive-l1": "inactive L1 table",
  "inactive-l2": "inactive L2 table",
  "bitmap-directory": "bitmap directory",
  "encryption-header": "encryption header",
} as const;
export type MetadataKind = keyof typeof METADATA_NAMES;

/** A cluster that is said to hold two things. */
export interface Dispute {
  /** One of them. */
  readonly kind: MetadataKind;
  readonly offset: number;
}

export class MetadataMap {
  #clusterBytes: number;
  /** By number of the cluster. */
  #kinds = new Map<number, MetadataKind>();
  #dispute: Dispute | null = null;
  #checked: ReadonlySet<string>;

  constructor(clusterBytes: number, checked: ReadonlySet<string>) {
    this.#clusterBytes = clusterBytes;
    this.#checked = checked;
  }

  /** The checks that are on. */
  set checked(names: ReadonlySet<string>) {
    this.#checked = names;
  }

  /** Ranges that lie nowhere are none. */
  add(kind: MetadataKind, offset: number, bytes: number): void {
    if (bytes <= 0 || !Number.isSafeInteger(offset + bytes)) return;
    const end = Math.ceil((offset + bytes) / this.#clusterBytes);
    for (let i = Math.floor(offset / this.#clusterBytes); i < end; i++) {
      const before = this.#kinds.get(i);
      if (before === undefined) this.#kinds.set(i, kind);
      else this.#dispute ??= { kind: before, offset: i * this.#clusterBytes };
    }
  }

  /** Not null: no metadata may be written, as it might be over other metadata. */
  get dispute(): Dispute | null {
    return this.#dispute;
  }

  remove(offset: number, bytes: number): void {
    const end = Math.ceil((offset + bytes) / this.#clusterBytes);
    for (let i = Math.floor(offset / this.#clusterBytes); i < end; i++) this.#kinds.delete(i);
  }

  /** What lies there, whatever checks are on; null: nothing. */
  kindOf(offset: number): MetadataKind | null {
    return this.#kinds.get(Math.floor(offset / this.#clusterBytes)) ?? null;
  }

  /** Something lies there, whatever checks are on. */
  has(offset: number): boolean {
    return this.#kinds.has(Math.floor(offset / this.#clusterBytes));
  }

  /** What lies in [offset, offset + bytes) that a write must not touch; null: nothing. */
  overlapOf(offset: number, bytes: number): MetadataKind | null {
    const last = Math.floor((offset + bytes - 1) / this.#clusterBytes);
    for (let i = Math.floor(offset / this.#clusterBytes); i <= last; i++) {
      const kind = this.#kinds.get(i);
      if (kind !== undefined && this.#checked.has(kind)) return kind;
    }
    return null;
  }
}
