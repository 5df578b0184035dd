/**
 * Where the parts of a new LUKS volume lie, as QEMU lays them out. Pure. Thread: main, iothread.
 * Spec: QEMU crypto/block-luks.c qcrypto_block_luks_create()
 */
import * as abi from "../abi/luks.ts";
import { materialBytes } from "./luks-header.ts";

/** Of the key material of a slot, from the start of the header. */
export function slotOffset(keyBytes: number, slot: number): number {
  const { LUKS_ALIGN_KEYSLOTS: alignment } = abi;
  return alignment + slot * Math.ceil(materialBytes(keyBytes) / alignment) * alignment;
}

/** Of what is encrypted: the length of all that comes before. */
export function payloadOffset(keyBytes: number): number {
  return slotOffset(keyBytes, abi.LUKS_NUMKEYS);
}
