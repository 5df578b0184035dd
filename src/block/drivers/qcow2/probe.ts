/** What the first bytes of a file tell of it. Pure. Spec: QEMU docs/interop/qcow2.rst "Header" */
import * as abi from "../../../abi/qcow2.ts";
import { viewOf } from "./header.ts";

/** An image that this driver has to open, be it to refuse it. */
export function isQcow2(start: Uint8Array): boolean {
  if (start.length < abi.HEADER_LENGTH_V2) return false;
  const view = viewOf(start);
  return (
    view.getUint32(abi.HEADER_MAGIC) === abi.QCOW_MAGIC && view.getUint32(abi.HEADER_VERSION) > 1
  );
}

/** It names a backing file, or a data file. */
export function namesFiles(start: Uint8Array): boolean {
  const view = viewOf(start);
  if (view.getBigUint64(abi.HEADER_BACKING_FILE_OFFSET) !== 0n) return true;
  if (view.getUint32(abi.HEADER_VERSION) < 3) return false;
  if (start.length < abi.HEADER_LENGTH_V3_MIN) return true;
  const incompatible = view.getUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4);
  return (incompatible & abi.QCOW2_INCOMPAT_DATA_FILE) !== 0;
}
