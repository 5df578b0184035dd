/** Overlays and internal snapshots, alone and in transactions. */

import { ask, type Scene } from "../script.ts";

const DISKS = [
  ...["--blockdev", "driver=file,node-name=f,filename=disk.raw"],
  ...["--blockdev", "driver=raw,node-name=r,file=f"],
  ...["--blockdev", "driver=copy-on-read,node-name=c,file=r"],
  ...["--blockdev", "driver=null-co,node-name=n,size=1048576"],
  ...["--nbd-server", "addr.type=unix,addr.path=nbd.sock"],
];

const sync = (args: object) => ask("blockdev-snapshot-sync", args);
const overlay = (node: string, args: object) =>
  sync({ "node-name": node, format: "qcow2", "snapshot-node-name": "new", ...args });
const snapshot = (node: unknown, over: unknown) =>
  ask("blockdev-snapshot", { node, overlay: over });
const internal = (device: unknown, name: unknown) =>
  ask("blockdev-snapshot-internal-sync", { device, name });
const remove = (device: string, more: object) =>
  ask("blockdev-snapshot-delete-internal-sync", { device, ...more });
const backing = (args: object) => ask("change-backing-file", args);
const act = (type: string, data: object) => ({ type, data });
const abort = act("abort", {});
const transaction = (...actions: object[]) => ask("transaction", { actions });
const add = (args: object) => ask("blockdev-add", args);
const gone = (name: string) => ask("blockdev-del", { "node-name": name });
const exported = (id: string, node: string) =>
  ask("block-export-add", { type: "nbd", id, "node-name": node, name: id, writable: true });

export const snapshotScenes: readonly Scene[] = [
  {
    name: "overlays over nodes in use",
    args: DISKS,
    steps: [
      ...[sync({}), sync({ "node-name": "r" }), sync({ device: "none", "snapshot-file": "x" })],
      ...[overlay("none", { "snapshot-file": "o1" }), overlay("r", { "snapshot-file": "" })],
      overlay("r", { "snapshot-file": "o1", format: "none" }),
      overlay("r", { "snapshot-file": "o1", format: "raw" }),
      overlay("r", { "snapshot-file": "o1", mode: "never" }),
      overlay("r", { "snapshot-file": "o1", mode: "existing" }),
      overlay("r", { "snapshot-file": "o1", "snapshot-node-name": "f" }),
      overlay("r", { "snapshot-file": "o1", "snapshot-node-name": "1" }),
      overlay("r", { "snapshot-file": "no/where", "snapshot-node-name": "o1" }),
      sync({ device: "n", "node-name": "r", "snapshot-file": "o1" }),
      exported("e", "r"),
      overlay("r", { "snapshot-file": "o1", "snapshot-node-name": "o1" }),
      ...[gone("r"), gone("o1"), snapshot("o1", "r"), snapshot("o1", "o1"), snapshot("none", "r")],
      ...[snapshot("o1", "none"), snapshot("n", "r"), snapshot("r", "n"), snapshot(1, "r")],
      ...[backing({ "image-node-name": "o1", device: "o1", "backing-file": "x" })],
      backing({ "image-node-name": "none", device: "o1", "backing-file": "x" }),
      backing({ "image-node-name": "r", device: "o1", "backing-file": "x" }),
      backing({ device: "o1", "backing-file": "x" }),
      overlay("o1", { "snapshot-file": "o2", "snapshot-node-name": "o2" }),
      overlay("r", { "snapshot-file": "o3", "snapshot-node-name": "o3" }),
      ask("query-block-exports"),
      ...[gone("o2"), ask("block-export-del", { id: "e" }), gone("o2"), gone("o1")],
    ],
  },
  {
    name: "internal snapshots",
    args: DISKS,
    steps: [
      ...[internal("none", "s"), internal("r", "s"), internal("n", "s"), internal("c", "s")],
      ...[remove("none", { name: "s" }), remove("r", { name: "s" }), remove("r", {})],
      overlay("n", { "snapshot-file": "q", "snapshot-node-name": "q" }),
      ...[internal("q", ""), internal("q", 1), remove("q", { name: "s" }), remove("q", {})],
      ...[remove("q", { id: "1" }), remove("q", { id: "1", name: "s" }), remove("q", { name: "" })],
      ...[internal("q", "s"), internal("q", "s")],
      ...[remove("q", { id: "2", name: "s" }), remove("q", { id: "1", name: "t" })],
      gone("q"),
    ],
  },
  {
    name: "snapshots in transactions",
    args: DISKS,
    steps: [
      transaction(act("blockdev-snapshot-internal-sync", { device: "r", name: "s" }), abort),
      transaction(act("blockdev-snapshot", { node: "r", overlay: "none" })),
      transaction(act("blockdev-snapshot-sync", { "node-name": "none", "snapshot-file": "o1" })),
      add({ driver: "raw", "node-name": "o", file: "n" }),
      transaction(act("blockdev-snapshot", { node: "r", overlay: "o" }), abort),
      transaction(
        act("block-dirty-bitmap-add", { node: "r", name: "b" }),
        act("blockdev-snapshot-sync", {
          ...{ "node-name": "r", "snapshot-file": "o1", "snapshot-node-name": "o1" },
        }),
        abort,
      ),
      ask("block-dirty-bitmap-remove", { node: "r", name: "b" }),
      gone("o1"),
    ],
  },
];
