/** Dirty bitmaps, transactions over them, and their exports. */

import { ask, type Reason, type Scene } from "../script.ts";

const DISKS = [
  ...["--blockdev", "driver=file,node-name=f,filename=disk.raw"],
  ...["--blockdev", "driver=raw,node-name=r,file=f"],
  ...["--blockdev", "driver=copy-on-read,node-name=c,file=r"],
  ...["--blockdev", "driver=raw,node-name=o,read-only=on,file.driver=file,file.filename=odd.raw"],
  ...["--blockdev", "driver=null-co,node-name=n,size=1048576"],
  ...["--nbd-server", "addr.type=unix,addr.path=nbd.sock"],
];

const command = (what: string, args: object, differs?: Reason) =>
  ask(`block-dirty-bitmap-${what}`, args, differs);
const add = (node: string, name: string, more: object = {}) =>
  command("add", { node, name, ...more });
const to = (what: string, node: string, name: string, differs?: Reason) =>
  command(what, { node, name }, differs);
const merge = (target: string, bitmaps: unknown) =>
  command("merge", { node: "r", target, bitmaps });
const sha256 = (node: string, name: string) =>
  ask("x-debug-block-dirty-bitmap-sha256", { node, name });
const act = (what: string, data: object) => ({ type: `block-dirty-bitmap-${what}`, data });
const transaction = (actions: unknown, properties?: unknown) =>
  ask("transaction", { actions, ...(properties === undefined ? {} : { properties }) });
const abort = { type: "abort", data: {} };
const nodes = ask("query-named-block-nodes", { flat: true });
const exported = (id: string, node: string, bitmaps: unknown, more: object = {}) =>
  ask("block-export-add", { type: "nbd", id, "node-name": node, name: id, bitmaps, ...more });
const gone = (id: string) => ask("block-export-del", { id });

const everything = (node: string, name: string) =>
  ["remove", "clear", "enable", "disable"].map((what) => to(what, node, name));

export const bitmapScenes: readonly Scene[] = [
  {
    name: "dirty bitmaps",
    args: DISKS,
    steps: [
      ...[add("r", ""), add("none", "b"), add("", "b"), add("r", "x".repeat(1024))],
      ...[0, 1, 256, 513, -1, 2 ** 32, "64k"].map((granularity) => add("r", "b", { granularity })),
      ...[add("r", "b"), add("r", "b"), add("r", "b", { granularity: 1 }), add("c", "b")],
      ...[add("r", "é", { granularity: 2 ** 31 }), add("r", "d", { disabled: true })],
      ...[add("r", "p", { persistent: true }), add("f", "p", { persistent: true })],
      ...[add("o", "p", { persistent: true }), add("r", "x".repeat(1024), { persistent: true })],
      ...[add("o", "b", { granularity: 512 }), add("n", "z", { granularity: 512 })],
      nodes,
      ...everything("none", "b"),
      ...everything("r", "none"),
      ...[to("enable", "r", "d"), to("enable", "r", "d"), to("disable", "r", "b")],
      ...[merge("none", ["b"]), merge("b", ["none"]), merge("b", [{ node: "no", name: "b" }])],
      ...[merge("b", ["d", "none"]), merge("b", ["b", "é"]), merge("b", [5]), merge("b", "d")],
      ...[merge("d", [{ node: "o", name: "b" }]), merge("d", [{ node: "n", name: "z" }])],
      ...[merge("b", [{ node: "c", name: "b" }]), sha256("r", "b"), sha256("r", "é")],
      ...[sha256("n", "z"), sha256("r", "none"), sha256("none", "b")],
      ask("block_resize", { "node-name": "r", size: 3 * 1024 * 1024 }),
      ...[sha256("r", "b"), sha256("r", "d"), to("remove", "r", "b"), to("remove", "r", "b")],
      nodes,
    ],
  },
  {
    name: "transactions",
    args: DISKS,
    steps: [
      ...[transaction([]), transaction([abort]), transaction([abort], {}), transaction(5)],
      ...[transaction([{}]), transaction([{ type: "drop", data: {} }])],
      ...[transaction([{ type: "abort" }]), transaction([{ type: "abort", data: { x: 1 } }])],
      transaction([act("clear", { node: "r" })]),
      transaction([abort], { "completion-mode": "some" }),
      transaction([abort], { "completion-mode": "grouped" }),
      transaction([abort], { "completion-mode": "individual" }),
      transaction([act("add", { node: "r", name: "a" }), act("add", { node: "r", name: "a" })]),
      nodes,
      transaction([
        act("add", { node: "r", name: "a", granularity: 512 }),
        act("merge", { node: "r", target: "a", bitmaps: ["a"] }),
        act("disable", { node: "r", name: "a" }),
        act("add", { node: "c", name: "a" }),
        act("clear", { node: "r", name: "a" }),
      ]),
      nodes,
      transaction([act("remove", { node: "r", name: "a" }), act("add", { node: "r", name: "a" })]),
      transaction([
        act("remove", { node: "r", name: "a" }),
        act("clear", { node: "r", name: "a" }),
      ]),
      transaction([act("remove", { node: "r", name: "a" }), abort]),
      nodes,
      transaction([
        act("enable", { node: "r", name: "a" }),
        act("clear", { node: "x", name: "a" }),
      ]),
      transaction([act("disable", { node: "r", name: "no" })]),
      transaction([act("add", { node: "r", name: "b", persistent: true })]),
      transaction([act("add", { node: "r", name: "b" })], { "completion-mode": "grouped" }),
      transaction([
        act("remove", { node: "r", name: "a" }),
        act("remove", { node: "c", name: "a" }),
      ]),
      nodes,
    ],
  },
  {
    name: "exports of dirty bitmaps",
    args: DISKS,
    steps: [
      ...[add("r", "b"), add("r", "d", { disabled: true }), add("f", "below"), add("o", "ro")],
      ...[exported("e", "r", ["no"]), exported("e", "r", ["below"]), exported("e", "r", ["b"])],
      ...[exported("e", "r", ["d", "b"]), exported("e", "r", "d"), exported("e", "r", [5])],
      exported("e", "r", [{ node: "r", name: "d", x: 1 }]),
      exported("e", "r", [{ node: "no", name: "d" }]),
      exported("e", "r", [{ node: "r", name: "no" }]),
      exported("e", "r", ["d"]),
      exported("e2", "c", ["d"]),
      exported("e2", "c", [{ node: "r", name: "d" }]),
      nodes,
      ...everything("r", "d"),
      ...[merge("d", ["b"]), merge("b", ["d"]), sha256("r", "d")],
      transaction([act("clear", { node: "r", name: "d" })]),
      ...[gone("e"), ...everything("r", "d")],
      ...[exported("e", "o", ["ro"]), exported("g", "r", [{ node: "r", name: "b" }])],
      ...[exported("h", "n", [{ node: "f", name: "below" }]), nodes, gone("h"), gone("g")],
      exported("e3", "c", ["b", "b"], { writable: true }),
      ...[nodes, gone("e3")],
      ask("nbd-server-add", { device: "r", name: "s", bitmap: "b" }),
      ask("nbd-server-add", { device: "r", name: "s", bitmap: "no" }),
      ask("nbd-server-add", { device: "r", name: "s", bitmap: "b", writable: true }),
      ...[nodes, ask("nbd-server-stop"), nodes],
    ],
  },
  {
    name: "merging nothing into a dirty bitmap",
    args: DISKS,
    differs: "QSD crashes",
    steps: [
      add("r", "b"),
      command("merge", { node: "r", target: "b", bitmaps: [] }, "QSD crashes"),
    ],
  },
  {
    name: "a transaction that can't enable a dirty bitmap",
    args: DISKS,
    differs: "QSD crashes",
    steps: [
      ask("transaction", { actions: [act("enable", { node: "r", name: "b" })] }, "QSD crashes"),
    ],
  },
  {
    name: "deleting a node whose dirty bitmap is exported",
    args: DISKS,
    differs: "QSD aborts",
    steps: [
      add("n", "b"),
      exported("e", "r", [{ node: "n", name: "b" }]),
      ask("blockdev-del", { "node-name": "n" }, "QSD aborts"),
    ],
  },
];
