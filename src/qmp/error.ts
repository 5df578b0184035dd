/** An error as QMP carries it. Thread: main. Spec: QEMU docs/interop/qmp-spec.rst "error" */
import { OutportError, type QapiErrorClass } from "../util/error.ts";

export interface QmpErrorReply {
  readonly class: QapiErrorClass;
  readonly desc: string;
}

/** Whatever a handler threw; what is no OutportError is a fault of ours, and says so. */
export function toQmpError(error: unknown): QmpErrorReply {
  if (error instanceof OutportError) return { class: error.qapiClass, desc: error.message };
  const desc = error instanceof Error ? error.message : String(error);
  return { class: "GenericError", desc: `Internal error: ${desc}` };
}
