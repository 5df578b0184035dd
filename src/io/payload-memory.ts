/**
 * Memory outside the reactor's own mapping that the payload of a request may lie in: a guest's.
 * Engines take its addresses as they are; whoever must look at the bytes asks here.
 * Thread: iothread.
 */
import type { Memory } from "./memory.ts";

export interface PayloadMemory {
  /** Zeroes [address, address + bytes). */
  zero(address: number, bytes: number): void;
  /** Copies to position `at` of `target`. */
  read(address: number, bytes: number, target: Memory, at: number): void;
  /** Copies from position `at` of `source`. */
  write(address: number, bytes: number, source: Memory, at: number): void;
}
