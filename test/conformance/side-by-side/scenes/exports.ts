/** The NBD server and its exports, and the order of checks. */

import { ask, type Scene, type Step } from "../script.ts";

const LISTEN = ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"];
const DISK = ["--blockdev", "driver=file,node-name=f,filename=disk.raw"];
const IO = ["--object", "iothread,id=io0"];

const unix = (path: string) => ({ type: "unix", data: { path } });
const start = (path: string, more: object = {}) =>
  ask("nbd-server-start", { addr: unix(path), ...more });
const stop = ask("nbd-server-stop");
const add = (id: string, more: object = {}) =>
  ask("block-export-add", { type: "nbd", id, "node-name": "f", ...more });
const del = (id: string, more: object = {}) => ask("block-export-del", { id, ...more });
const list = ask("query-block-exports");

/** Every pair of faults of block-export-add at once: shows the order of checks. */
function pairsOfFaults(): Step[] {
  const faults: readonly object[] = [
    { id: "1bad" },
    { id: "taken" },
    { "node-name": "none" },
    { "node-name": "ro", writable: true },
    { iothread: "nope" },
    { iothread: [] },
    { iothread: ["io0"], "fixed-iothread": true },
    { iothread: ["io0"] },
    { name: "taken" },
    { name: "n".repeat(4097) },
    { description: "d".repeat(4097) },
    { bitmaps: ["b"] },
    { bitmaps: [{ node: "none", name: "b" }] },
    { bitmaps: [{ node: "f", name: "b" }] },
  ];
  const base = { type: "nbd", id: "x", "node-name": "f" };
  return faults.flatMap((one, at) =>
    faults.slice(at).map((other) => ask("block-export-add", { ...base, ...one, ...other })),
  );
}

export const exportScenes: readonly Scene[] = [
  {
    name: "the NBD server",
    args: DISK,
    steps: [
      stop,
      add("e"),
      start("nbd.sock"),
      start("nbd.sock"),
      start("other.sock"),
      stop,
      stop,
      start("no/nbd.sock"),
      start("nbd.sock", { "tls-creds": "tls0" }),
      start("nbd.sock", { "tls-authz": "nope" }),
      add("e"),
      stop,
      list,
    ],
  },
  {
    name: "exports",
    args: [...DISK, ...LISTEN],
    steps: [
      list,
      add("e"),
      list,
      add("e"),
      add("e1"),
      add("e1", { name: "other", description: "", writable: true }),
      add("e2", { name: "" }),
      add("e3", { name: "" }),
      list,
      ask("blockdev-del", { "node-name": "f" }),
      ask("block_resize", { "node-name": "f", size: 2097152 }),
      ask("x-debug-query-block-graph"),
      ask("query-block"),
      ask("blockdev-set-active", { active: false }),
      del("none"),
      del("e", { mode: "safe" }),
      del("e"),
      del("e1", { mode: "hard" }),
      list,
      ask("blockdev-set-active", { active: false }),
      add("e4", { "allow-inactive": true, name: "inactive" }),
      add("e5", { name: "activates" }),
      ask("query-named-block-nodes"),
    ],
  },
  {
    name: "pairs of faults of block-export-add",
    args: [
      ...IO,
      ...DISK,
      "--blockdev",
      "driver=file,node-name=ro,filename=other.raw,read-only=on",
      ...LISTEN,
      "--export",
      "nbd,id=taken,node-name=ro,name=taken",
    ],
    steps: [...pairsOfFaults(), list],
  },
  {
    name: "pairs of faults without a server",
    args: [...IO, ...DISK],
    steps: [...pairsOfFaults(), list],
  },
  {
    name: "iothreads of exports",
    args: [
      ...IO,
      "--object",
      "iothread,id=io1",
      ...DISK,
      "--blockdev",
      "driver=file,node-name=g,filename=other.raw",
      ...LISTEN,
    ],
    steps: [
      add("e0", { iothread: "io0" }),
      add("e1", { iothread: "io1", name: "second", "fixed-iothread": true }),
      add("e2", { iothread: "io1", name: "third" }),
      add("e3", { "node-name": "g", iothread: "io0", "fixed-iothread": true }),
      add("e4", { "node-name": "g", iothread: "io1", name: "g2" }),
      add("e5", { "node-name": "g", iothread: "io1", name: "g3", "fixed-iothread": true }),
      list,
    ],
  },
  {
    name: "the older commands",
    args: DISK,
    steps: [
      ask("nbd-server-add", { device: "f" }),
      ask("nbd-server-add", {}),
      start("nbd.sock"),
      ask("nbd-server-add", { device: "none" }),
      ask("nbd-server-add", { device: "f", writable: true }),
      ask("nbd-server-add", { device: "f" }),
      ask("nbd-server-add", { device: "f", name: "x", bitmap: "b" }),
      ask("nbd-server-add", { device: "f", name: "x", description: "text" }),
      list,
      ask("nbd-server-remove", { name: "none" }),
      ask("nbd-server-remove", { name: "f", mode: "soft" }),
      ask("nbd-server-remove", { name: "f" }),
      ask("nbd-server-remove", { name: "x", mode: "hard" }),
      ask("nbd-server-remove", {}),
      list,
    ],
  },
];
