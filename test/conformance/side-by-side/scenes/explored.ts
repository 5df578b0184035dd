/** What explore.ts found, reduced: orders of checks, names of images, and crashes of QSD. */

import { ask, type Scene } from "../script.ts";

const add = (driver: string, name: string, more: object = {}) =>
  ask("blockdev-add", { driver, "node-name": name, ...more });
const object = (type: string, id: string, more: object = {}) =>
  ask("object-add", { "qom-type": type, id, ...more });
const socket = (data: object) => ask("chardev-add", { id: "c", backend: { type: "socket", data } });
const reopen = (options: object) => ask("blockdev-reopen", { options: [options] });
const file = add("file", "f", { filename: "disk.raw" });
const raw = add("raw", "r", { file: "f" });

const RULES = { "inject-error": [{ event: "read_aio", once: true }] };
const DEBUG = { align: 4096, ...RULES };
const UNIX = { type: "unix", data: { path: "c.sock" } };
const FD = { type: "fd", data: { str: "none" } };
const INET = { type: "inet", data: { host: "127.0.0.1", port: "0" } };

export const exploredScenes: readonly Scene[] = [
  {
    name: "explored: nodes that name themselves before their children",
    steps: [
      file,
      raw,
      add("blkdebug", "f", { image: "none" }),
      add("blkdebug", "x", { image: "x" }),
      add("blkdebug", "x", { image: { driver: "null-co", "node-name": "x" } }),
      add("blkdebug", "x", { image: "none", "force-share": true }),
      add("blkdebug", "x", { image: "none", "detect-zeroes": "unmap", discard: "ignore" }),
      add("blkverify", "x", { raw: "x", test: "none" }),
      add("blkverify", "f", { raw: "f", test: { driver: "file", filename: "directory" } }),
      add("blklogwrites", "x", { file: "f", log: "x" }),
      add("blklogwrites", "r", { file: "f", log: { driver: "file", filename: "none.raw" } }),
      add("blklogwrites", "x", { file: "f", log: { driver: "null-co", "node-name": "x" } }),
      add("raw", "f", { file: { driver: "file", filename: "none.raw" } }),
      add("null-co", "x", { "latency-ns": -1 }),
      ask("x-debug-query-block-graph"),
    ],
  },
  {
    name: "explored: names of images over others",
    steps: [
      file,
      raw,
      add("raw", "window", { file: "f", offset: 512 }),
      add("copy-on-read", "filter", { file: "f" }),
      add("blkdebug", "d0", { image: "f" }),
      add("blkdebug", "d1", { image: "r" }),
      add("blkdebug", "d2", { image: "window" }),
      add("blkdebug", "d3", { image: "filter" }),
      add("blkdebug", "d4", { image: "d0" }),
      add("blkdebug", "d5", { image: "f", align: 4096 }),
      add("raw", "over", { file: "d0" }),
      add("blkverify", "v0", { raw: "r", test: "d0" }),
      add("blkverify", "v1", { raw: "r", test: "window" }),
      ask("query-named-block-nodes"),
    ],
  },
  {
    name: "explored: reopening with force-share",
    steps: [
      file,
      raw,
      reopen({ driver: "file", "node-name": "f", filename: "disk.raw", "force-share": true }),
      reopen({ driver: "raw", "node-name": "r", file: "f", "force-share": true }),
      reopen({ driver: "raw", "node-name": "r", file: "none", "force-share": true }),
    ],
  },
  {
    name: "explored: reopening blkdebug",
    steps: [
      file,
      add("file", "g", { filename: "other.raw" }),
      add("blkdebug", "d", { image: "f", ...DEBUG }),
      reopen({ driver: "blkdebug", "node-name": "d", image: "f", ...DEBUG }),
      reopen({ driver: "blkdebug", "node-name": "d", image: "f", ...DEBUG, align: 512 }),
      reopen({ driver: "blkdebug", "node-name": "d", image: "g", ...DEBUG }),
      reopen({ driver: "blkdebug", "node-name": "d", image: "f", ...DEBUG, "read-only": true }),
      reopen({ driver: "blkdebug", "node-name": "d", image: "f", ...RULES }),
      ask("query-named-block-nodes"),
      ask("x-debug-query-block-graph"),
    ],
  },
  {
    name: "explored: exports of nodes that become inactive",
    args: ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"],
    steps: [
      file,
      ask("block-export-add", { type: "nbd", id: "a", "node-name": "f" }),
      ask("block-export-add", {
        ...{ type: "nbd", id: "b", "node-name": "f", name: "b" },
        ...{ writable: true, "allow-inactive": true },
      }),
      ask("blockdev-set-active", { active: false }),
      ask("x-debug-query-block-graph"),
      ask("block_resize", { "node-name": "f", size: 512 }),
      ask("blockdev-set-active", { active: true }),
      ask("x-debug-query-block-graph"),
    ],
  },
  {
    name: "explored: objects that are wrong and have a taken id",
    steps: [
      object("iothread", "a"),
      object("iothread", "a", { "thread-pool-max": 0 }),
      object("main-loop", "a", { "thread-pool-max": 0 }),
      object("throttle-group", "a", { "x-iops-total-max": 2 }),
      object("throttle-group", "a", { "x-iops-total-max": -2 }),
      object("throttle-group", "a", { "x-bps-total-max-length": 2 ** 32 }),
      object("throttle-group", "a", { limits: { "iops-total-max": 2 } }),
    ],
  },
  {
    name: "explored: sockets with several faults",
    steps: [
      socket({ addr: FD, "reconnect-ms": 1 }),
      socket({ addr: FD, "reconnect-ms": 0, server: false }),
      socket({ addr: FD, "reconnect-ms": 1, "tls-authz": "a" }),
      socket({ addr: UNIX, "reconnect-ms": 1, "tls-authz": "a" }),
      socket({ addr: UNIX, "reconnect-ms": 1, telnet: true, tn3270: true }),
      socket({ addr: INET, server: false, wait: true, "tls-authz": "a" }),
      socket({ addr: INET, server: false, wait: true, websocket: true }),
    ],
  },
  {
    name: "explored: a null node of negative size",
    steps: [
      ask("blockdev-add", { driver: "null-co", "node-name": "n", size: -1 }, "QSD aborts"),
      ask("query-named-block-nodes", undefined, "QSD is gone"),
    ],
    differs: "QSD aborts",
  },
  {
    name: "explored: a node below itself",
    steps: [
      ask(
        "blockdev-add",
        {
          ...{ driver: "blkdebug", "node-name": "d" },
          image: { driver: "raw", file: "d" },
        },
        "QSD crashes",
      ),
      ask("query-named-block-nodes", undefined, "QSD is gone"),
    ],
    differs: "QSD crashes",
  },
];
