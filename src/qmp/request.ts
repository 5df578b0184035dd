/** The shape of a QMP request. Pure. Spec: QEMU qapi/qmp-dispatch.c, qmp_dispatch_check_obj() */
import { invalid } from "../util/error.ts";

export interface QmpRequest {
  readonly name: string;
  readonly args: Readonly<Record<string, unknown>>;
  readonly oob: boolean;
}

/**
 * `onId` is called before anything can fail that a reply with an id could tell.
 * Throws an OutportError in QSD's words.
 */
export function parseRequest(
  value: unknown,
  oobEnabled: boolean,
  onId: (id: unknown) => void,
): QmpRequest {
  if (!isObject(value)) throw invalid("QMP input must be a JSON object");
  if (Object.hasOwn(value, "id")) onId(value.id);
  let execute: string | undefined;
  for (const [key, member] of Object.entries(value)) {
    if (key === "execute" || (key === "exec-oob" && oobEnabled)) {
      if (typeof member !== "string") throw invalid(`QMP input member '${key}' must be a string`);
      if (execute !== undefined) {
        throw invalid("QMP input member 'execute' clashes with 'exec-oob'");
      }
      execute = key;
    } else if (key === "arguments") {
      if (!isObject(member)) throw invalid("QMP input member 'arguments' must be an object");
    } else if (key !== "id") throw invalid(`QMP input member '${key}' is unexpected`);
  }
  if (execute === undefined) throw invalid("QMP input lacks member 'execute'");
  return {
    name: value[execute] as string,
    args: (value.arguments ?? {}) as Record<string, unknown>,
    oob: execute === "exec-oob",
  };
}

/** Whether a request overtakes those that wait, right or wrong as it may be. */
export function isOutOfBand(value: unknown): boolean {
  return isObject(value) && Object.hasOwn(value, "exec-oob") && !Object.hasOwn(value, "execute");
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
