/** What queries tell of a LUKS volume. Pure. Thread: iothread. Spec: QCryptoBlockInfoLUKS */
import { LUKS_STRIPES } from "../abi/luks.ts";
import type { LuksHeader } from "./luks-header.ts";

/** QCryptoBlockInfoLUKS, wire names. */
export function luksInfo(header: LuksHeader): Record<string, unknown> {
  const slots = header.slots.map(({ isActive, iterations: iters, offset }) => ({
    active: isActive,
    ...(isActive ? { iters, stripes: LUKS_STRIPES } : {}),
    "key-offset": offset,
  }));
  return {
    "cipher-alg": `aes-${header.keyBytes * 4}`,
    "cipher-mode": "xts",
    "ivgen-alg": "plain64",
    "hash-alg": header.hash,
    "detached-header": header.isDetached,
    "payload-offset": header.payloadOffset,
    "master-key-iters": header.digestIterations,
    uuid: header.uuid,
    slots,
  };
}
