/**
 * luks: an encrypted volume, LUKS version 1, with its header in front or in another file. Schema
 * and child rules on main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsLUKS; QEMU block/crypto.c
 */
import { readLuksLock } from "../../../crypto/luks-lock.ts";
import { optional, str } from "../../../qapi/scalars.ts";
import type { BlockDriver, Permissions } from "../../driver.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from "../../node.ts";
import { luksCreation } from "./create.ts";
import { headerReader, openLuks } from "./node.ts";

export const luks: BlockDriver = {
  name: "luks",
  members: { "key-secret": optional(str, "Id of the secret with the passphrase") },
  children: [
    { role: "file", optional: false },
    { role: "header", optional: true, after: "key-secret" },
  ],
  strongOptions: ["key-secret"],
  reopenable: [],
  encryption: {
    keySecret: (options) => (options as { "key-secret"?: string })["key-secret"],
    readLock: (context) =>
      readLuksLock(headerReader(context), context.children.header !== undefined),
  },
  creation: luksCreation,
  childPermissions(role, of): Permissions {
    // Keys that somebody else changes are keys that don't fit any more.
    if (role === "header") {
      return { used: PERM_CONSISTENT_READ, shared: PERM_ALL & ~(PERM_WRITE | PERM_RESIZE) };
    }
    return { used: of.used | PERM_CONSISTENT_READ, shared: of.shared };
  },
  open: openLuks,
};
