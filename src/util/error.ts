/** The error of the control plane. The data plane uses negative errno numbers and never throws. */

/** A small, closed classification that borders map to their own codes. */
export type ErrorKind =
  | "io"
  | "invalid"
  | "unsupported"
  | "corrupt"
  | "not-found"
  | "in-use"
  | "permission"
  | "limit";

/** The error classes of QMP. Spec: qapi/error.json */
export type QapiErrorClass =
  | "GenericError"
  | "CommandNotFound"
  | "DeviceNotActive"
  | "DeviceNotFound"
  | "KVMMissingCap";

export class OutportError extends Error {
  readonly kind: ErrorKind;
  readonly qapiClass: QapiErrorClass;

  /** `message` is for the operator, and for QMP as `desc`, in words of QSD if it has any. */
  constructor(
    kind: ErrorKind,
    message: string,
    options: { qapiClass?: QapiErrorClass; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "OutportError";
    this.kind = kind;
    this.qapiClass = options.qapiClass ?? "GenericError";
  }
}

/** The most common kind. */
export function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}

/** A broken promise of our own code: never reachable by what a client, guest or operator sends. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`Assertion failed: ${message}`);
}
