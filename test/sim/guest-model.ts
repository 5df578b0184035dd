/**
 * What a guest may find on its disk: each write of a sector is a version with bytes of its own, and
 * the model knows which versions each sector may have, now and after a power cut.
 */
import { SECTOR_BYTES } from "./disk.ts";

/** Zeroes. */
export const ZERO_VERSION = 0;
/** What was there in the beginning, where that is not zeroes. */
export const FIRST_VERSION = 1;

const words = new Uint32Array(SECTOR_BYTES / 4);
const wordBytes = new Uint8Array(words.buffer);
const zeroes = new Uint8Array(SECTOR_BYTES);

/** The bytes of one sector in one version: they tell both. */
export function fillSector(target: Uint8Array, sector: number, version: number): void {
  target.set(bytesOf(sector, version));
}

/** Until the next call. */
function bytesOf(sector: number, version: number): Uint8Array {
  if (version === ZERO_VERSION) return zeroes;
  words[0] = version;
  const start = Math.imul(version, 0x9e3779b9) ^ Math.imul(sector + 1, 0x85ebca6b);
  for (let i = 1; i < words.length; i++) words[i] = start + Math.imul(i, 0xc2b2ae35);
  return wordBytes;
}

/** The first version of all sectors of a range. */
export function firstVersions(offset: number, bytes: number): Uint8Array {
  const content = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += SECTOR_BYTES) {
    const sector = content.subarray(at, at + SECTOR_BYTES);
    fillSector(sector, (offset + at) / SECTOR_BYTES, FIRST_VERSION);
  }
  return content;
}

/** The version that these bytes are; null: none of this sector. */
export function versionOf(bytes: Uint8Array, sector: number): number | null {
  const version = bytes[0]! + bytes[1]! * 2 ** 8 + bytes[2]! * 2 ** 16 + bytes[3]! * 2 ** 24;
  return Buffer.compare(bytes, bytesOf(sector, version)) === 0 ? version : null;
}

/** Empty, or what is wrong: only versions of `allowed` may be there. */
export function checkSector(
  sector: number,
  bytes: Uint8Array,
  allowed: ReadonlySet<number>,
): string {
  const version = versionOf(bytes, sector);
  if (version !== null && allowed.has(version)) return "";
  const found = version === null ? "other bytes" : `version ${version}`;
  return `sector ${sector}: ${found} instead of version ${[...allowed].join(" or ")}`;
}

interface Sector {
  /** What a read may find. */
  now: Set<number>;
  /** What may be there after a cut. */
  durable: Set<number>;
  /** Versions that requests began to write since it was settled, in order. */
  begun: number[];
}

/** Sectors as they were when a flush was asked for, with how many versions had been begun. */
type FlushPoint = Map<number, { readonly now: ReadonlySet<number>; readonly begunCount: number }>;

export class GuestModel {
  readonly sectorCount: number;
  #sectors: Sector[];
  #lastVersion = FIRST_VERSION;
  /** Changed since they were last settled. */
  #unsettled = new Set<number>();
  #busy = new Set<number>();

  constructor(sectorCount: number, initial: (sector: number) => number) {
    this.sectorCount = sectorCount;
    this.#sectors = Array.from({ length: sectorCount }, (_, sector) => ({
      now: new Set([initial(sector)]),
      durable: new Set([initial(sector)]),
      begun: [],
    }));
  }

  newVersion(): number {
    return ++this.#lastVersion;
  }

  /** A guest does not write where it is writing already. */
  isBusy(first: number, count: number): boolean {
    for (let i = first; i < first + count; i++) if (this.#busy.has(i)) return true;
    return false;
  }

  /** Until changeEnds(), the sectors may have either content. */
  changeBegins(first: number, count: number, version: number): void {
    for (let i = first; i < first + count; i++) {
      const sector = this.#sectors[i]!;
      sector.now.add(version);
      sector.durable.add(version);
      sector.begun.push(version);
      this.#busy.add(i);
      this.#unsettled.add(i);
    }
  }

  /** `certain`: the sectors have that version now. Otherwise it failed, or was a mere hint. */
  changeEnds(first: number, count: number, version: number, certain: boolean): void {
    for (let i = first; i < first + count; i++) {
      this.#busy.delete(i);
      if (certain) this.#sectors[i]!.now = new Set([version]);
    }
  }

  flushBegins(): FlushPoint {
    const point: FlushPoint = new Map();
    for (const i of this.#unsettled) {
      const { now, begun } = this.#sectors[i]!;
      if (!this.#busy.has(i)) point.set(i, { now: new Set(now), begunCount: begun.length });
    }
    return point;
  }

  /** The flush succeeded. */
  flushEnds(point: FlushPoint): void {
    for (const [i, { now, begunCount }] of point) {
      const sector = this.#sectors[i]!;
      // What was begun after the flush may or may not have made it.
      const later = sector.begun.slice(begunCount);
      sector.durable = new Set([...now, ...later]);
      if (later.length === 0) this.#unsettled.delete(i);
    }
  }

  /** A write with FUA succeeded. */
  madeDurable(first: number, count: number): void {
    for (let i = first; i < first + count; i++) {
      const sector = this.#sectors[i]!;
      sector.durable = new Set(sector.now);
    }
  }

  /** What a read that begins now may find, also when someone writes there meanwhile. */
  readBegins(first: number, count: number): (index: number) => ReadonlySet<number> {
    const before = this.#sectors.slice(first, first + count).map(({ now, begun }) => {
      return { now: new Set(now), begunCount: begun.length };
    });
    return (index) => {
      const { now, begunCount } = before[index]!;
      return new Set([...now, ...this.#sectors[first + index]!.begun.slice(begunCount)]);
    };
  }

  /** Of each sector: what it may hold now. Nothing is in flight. */
  capture(): ReadonlySet<number>[] {
    return this.#sectors.map(({ now }) => new Set(now));
  }

  /** Empty, or what is wrong with the bytes of one sector. */
  check(sector: number, bytes: Uint8Array, when: "now" | "durable"): string {
    return checkSector(sector, bytes, this.#sectors[sector]![when]);
  }

  /** After a cut, this is what there is. */
  settle(sector: number, bytes: Uint8Array): void {
    const version = versionOf(bytes, sector)!;
    this.#sectors[sector] = {
      now: new Set([version]),
      durable: new Set([version]),
      begun: [],
    };
    this.#busy.delete(sector);
    this.#unsettled.delete(sector);
  }
}
