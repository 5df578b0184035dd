/** Every kind of object. Thread: main. */
import { type IothreadStarter, iothreadKind } from "./iothread.ts";
import type { ObjectKind } from "./registry.ts";

export function objectKinds(parts: { readonly iothreads: IothreadStarter }): readonly ObjectKind[] {
  return [iothreadKind(parts.iothreads)];
}
