/**
 * qcow2: QEMU's disk image format. Schema and child rules on main, nodes on an iothread.
 *
 * Main opens the children that the options name; those that only the image names, implied() tells.
 * Spec: QEMU docs/interop/qcow2.rst; qapi/block-core.json BlockdevOptionsQcow2
 */
import type { BlockDriver, OpenContext, Permissions } from "../../driver.ts";
import { PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE, PERM_WRITE_UNCHANGED } from "../../node.ts";
import { qcow2Creation } from "./create.ts";
import { keySecretOf } from "./encryption.ts";
import { readImageLock } from "./encryption-lock.ts";
import { impliedChildren } from "./implied.ts";
import { Qcow2Node } from "./node.ts";
import { openImage } from "./open.ts";
import { qcow2Members, qcow2Reopenable } from "./options.ts";
import { isQcow2, namesFiles } from "./probe.ts";

export const qcow2: BlockDriver = {
  name: "qcow2",
  members: qcow2Members,
  children: [
    { role: "file", optional: false },
    { role: "backing", optional: true, nullable: true, after: "file" },
    { role: "data-file", optional: true, after: "encrypt" },
  ],
  strongOptions: ["encrypt.key-secret"],
  hasSnapshots: true,
  reopenable: qcow2Reopenable,
  changeable: ["encrypt.format", "encrypt.key-secret"],
  childPermissions(role, of, _options, writable): Permissions {
    if (role === "backing") return backingPermissions(of);
    return role === "file" ? filePermissions(of, writable) : dataFilePermissions(of);
  },
  probe: isQcow2,
  namesFiles,
  impliedChildren,
  encryption: { keySecret: keySecretOf, readLock: readImageLock },
  creation: qcow2Creation,
  async open(context: OpenContext) {
    return new Qcow2Node(await openImage(context));
  },
};

/** Metadata is written also where no user writes, and nobody else may come in between. */
function filePermissions({ used, shared }: Permissions, writable: boolean): Permissions {
  const own = PERM_CONSISTENT_READ | (writable ? PERM_WRITE | PERM_RESIZE : 0);
  return { used: used | own, shared: shared & ~(PERM_WRITE | PERM_RESIZE) };
}

function dataFilePermissions({ used, shared }: Permissions): Permissions {
  let own = used;
  // What is copied up is a write there; and a write may go beyond its end.
  if ((own & PERM_WRITE_UNCHANGED) !== 0) own |= PERM_WRITE;
  if ((own & PERM_WRITE) !== 0) own |= PERM_RESIZE;
  return { used: own, shared: shared & ~PERM_RESIZE };
}

/** Who can live with changing data can live with a backing file that changes. */
function backingPermissions({ used, shared }: Permissions): Permissions {
  const changes = (shared & PERM_WRITE) !== 0 ? PERM_WRITE | PERM_RESIZE : 0;
  return {
    used: used & PERM_CONSISTENT_READ,
    shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED | changes,
  };
}
