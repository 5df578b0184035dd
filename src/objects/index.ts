/** Every kind of object. Thread: main. */
import { authzListKind } from "./authz/list.ts";
import { authzListFileKind, type ListFileParts } from "./authz/list-file.ts";
import { authzPamKind } from "./authz/pam.ts";
import { authzSimpleKind } from "./authz/simple.ts";
import { type IothreadStarter, iothreadKind } from "./event-loop/iothread.ts";
import { mainLoopKind } from "./event-loop/main-loop.ts";
import { type MonitorQmpParts, monitorQmpKind } from "./monitor-qmp.ts";
import type { ObjectKind } from "./registry.ts";
import { secretKeyringKind } from "./secret/keyring.ts";
import { secretKind } from "./secret/secret.ts";
import { throttleGroupKind } from "./throttle-group.ts";

export interface ObjectParts extends ListFileParts, MonitorQmpParts {
  readonly iothreads: IothreadStarter;
}

export function objectKinds(parts: ObjectParts): readonly ObjectKind[] {
  return [
    authzListKind(),
    authzListFileKind(parts),
    authzPamKind(),
    authzSimpleKind(),
    iothreadKind(parts.iothreads),
    mainLoopKind(),
    monitorQmpKind(parts),
    secretKind(parts.linux),
    secretKeyringKind(parts.linux),
    throttleGroupKind(parts.linux),
  ];
}
