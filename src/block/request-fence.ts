/**
 * The requests that are in flight at one time: whether all of them have ended since. A request may
 * be on its way to a place of the host's file although that place is no longer the node's: only
 * then may the place be used again. Thread: iothread.
 */
import type { RequestTable } from "../io/requests.ts";

export class RequestFence {
  #requests: RequestTable;
  #slots: number[];
  #serials: number[];

  constructor(requests: RequestTable) {
    this.#requests = requests;
    this.#slots = requests.slotsInUse();
    this.#serials = this.#slots.map((slot) => requests.serial[slot]!);
  }

  hasPassed(): boolean {
    const { serial } = this.#requests;
    if (this.#slots.some((slot, i) => serial[slot] === this.#serials[i])) return false;
    this.#slots = [];
    return true;
  }
}
