/** Jobs and blockdev-create, as far as nobody has to wait for a job. */

import { ask, type Reason, type Scene } from "../script.ts";

const VERBS = ["pause", "resume", "cancel", "complete", "finalize", "dismiss"];

const create = (jobId: unknown, options: unknown, differs?: Reason) =>
  ask("blockdev-create", { "job-id": jobId, options }, differs);
const file = (more: object) => create("j", { driver: "file", filename: "new", size: 512, ...more });
const qcow2 = (more: object) => create("j", { driver: "qcow2", file: "n", size: 512, ...more });
const MAKES_NONE = "outport lists only drivers that make images";

export const jobScenes: readonly Scene[] = [
  {
    name: "jobs that there are none of",
    steps: [
      ask("query-jobs"),
      ask("query-jobs", { id: "j" }),
      ...VERBS.flatMap((verb) => [
        ask(`job-${verb}`, { id: "none" }),
        ask(`job-${verb}`, { id: "" }),
        ask(`job-${verb}`, { id: 1 }),
        ask(`job-${verb}`),
      ]),
    ],
  },
  {
    name: "arguments of blockdev-create",
    steps: [
      ...["", "1a", "a b", "#a", "a:b", "é", "-"].map((id) =>
        create(id, { driver: "file", filename: "new", size: 0 }),
      ),
      ...[create(1, { driver: "file" }), create("j", "file"), create("j", {})],
      ...[create("j", { driver: "file" }), create("j", { driver: "file", filename: "new" })],
      ...[file({ size: "1M" }), file({ size: 1.5 }), file({ preallocation: "none" })],
      ...[file({ nocow: 1 }), file({ "extent-size-hint": "1M" }), file({ "cluster-size": 512 })],
      ...[create("j", { driver: "qcow2" }), create("j", { driver: "qcow2", file: "n" })],
      ...[qcow2({ file: 1 }), qcow2({ file: null }), qcow2({ file: {} })],
      ...[qcow2({ file: { driver: "none" } }), qcow2({ "data-file": { driver: "file" } })],
      ...[qcow2({ version: "v4" }), qcow2({ version: 3 }), qcow2({ "refcount-bits": "16" })],
      ...[qcow2({ "backing-fmt": "none" }), qcow2({ "compression-type": "lzo" })],
      ...[qcow2({ encrypt: {} }), qcow2({ encrypt: { format: "aes" } }), qcow2({ foo: 1 })],
      ...[qcow2({ encrypt: { format: "luks", "cipher-alg": "rot13" } })],
      create("j", { driver: "raw" }, MAKES_NONE),
      create("j", { driver: "null-co" }, MAKES_NONE),
      ask("query-jobs"),
    ],
  },
];
