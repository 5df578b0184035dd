/**
 * The qcow2 header extension that says where the LUKS header lies. Big-endian.
 * Spec: QEMU docs/interop/qcow2.rst "Full disk encryption header pointer"
 */

export const CRYPTO_OFFSET = 0;
export const CRYPTO_LENGTH = 8;
export const CRYPTO_EXTENSION_BYTES = 16;
