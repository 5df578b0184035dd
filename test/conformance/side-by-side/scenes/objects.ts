/** Objects and their properties. */

import { ask, type Scene } from "../script.ts";

const add = (kind: string, id: string, more: object = {}, differs?: string) =>
  ask("object-add", { "qom-type": kind, id, ...more }, differs);
const del = (id: string) => ask("object-del", { id });
const get = (path: string, property: string) => ask("qom-get", { path, property });
const set = (path: string, property: string, value: unknown) =>
  ask("qom-set", { path, property, value });
const list = (path: string) => ask("qom-list", { path });

/** The name in its schema is not the one under which it has the type. */
const LISTFILE = "QSD cannot make any";

export const objectScenes: readonly Scene[] = [
  {
    name: "adding and deleting objects",
    steps: [
      ask("object-add", {}),
      ask("object-add", { "qom-type": "iothread" }),
      ask("object-add", { id: "x" }),
      ask("object-add", { "qom-type": "nope", id: "x" }),
      add("iothread", "io0"),
      add("iothread", "io0"),
      add("iothread", ""),
      add("iothread", "1x"),
      add("iothread", "a/b"),
      add("iothread", "io1", { "poll-max-ns": -1 }),
      add("iothread", "io1", { "poll-max-ns": "1" }),
      add("iothread", "io1", { foo: 1 }),
      add("iothread", "io1", { "aio-max-batch": -1 }),
      add("iothread", "io1", { "thread-pool-min": 5, "thread-pool-max": 2 }),
      list("/objects"),
      del("io0"),
      del("io0"),
      del("none"),
      del(""),
      ask("object-del", {}),
    ],
  },
  {
    name: "paths and properties",
    steps: [
      add("iothread", "io0", { "poll-max-ns": 1000 }),
      list("/"),
      list("/objects"),
      list("/objects/io0"),
      list("io0"),
      list("/none"),
      list(""),
      list("objects"),
      get("/objects/io0", "poll-max-ns"),
      get("/objects/io0", "type"),
      get("/objects/io0", "nope"),
      get("/none", "type"),
      get("io0", "poll-grow"),
      set("/objects/io0", "poll-max-ns", 2000),
      get("/objects/io0", "poll-max-ns"),
      set("/objects/io0", "poll-max-ns", -1),
      set("/objects/io0", "poll-max-ns", "1"),
      set("/objects/io0", "type", "x"),
      set("/objects/io0", "nope", 1),
      set("/none", "x", 1),
      ask("qom-list-properties", { typename: "nope" }),
      ask("qom-list-properties", { typename: "iothread" }),
      ask("qom-list-properties", { typename: "throttle-group" }),
      ask("qom-list-properties", { typename: "secret" }),
      ask(
        "qom-list-types",
        { implements: "user-creatable", abstract: false },
        "QSD has more kinds",
      ),
      ask("qom-list-get", { paths: ["/objects/io0"] }),
      ask("qom-list-get", { paths: ["/none"] }),
    ],
  },
  {
    name: "secrets",
    steps: [
      add("secret", "s"),
      add("secret", "s", { data: "letmein", file: "secret.txt" }),
      add("secret", "s", { data: "letmein" }),
      get("/objects/s", "format"),
      get("/objects/s", "file"),
      add("secret", "t", { data: "bm90IGJhc2U2NA", format: "base64" }),
      add("secret", "t", { data: "****", format: "base64" }),
      add("secret", "t", { data: "x", format: "hex" }),
      add("secret", "t", { file: "none.txt" }),
      add("secret", "t", { file: "secret.txt" }),
      add("secret", "u", { data: "x", keyid: "none" }),
      add("secret", "u", { data: "x", keyid: "s" }),
      add("secret", "u", { data: "x", keyid: "s", iv: "AAAA" }),
      add("secret", "u", { data: "x", iv: "AAAA" }),
      list("/objects/s"),
      del("s"),
      del("t"),
    ],
  },
  {
    name: "authorization",
    steps: [
      add("authz-simple", "a"),
      add("authz-simple", "a", { identity: "CN=x" }),
      get("/objects/a", "identity"),
      set("/objects/a", "identity", "CN=y"),
      add("authz-list", "l", { policy: "maybe" }),
      add("authz-list", "l", { rules: [{ match: "a*", policy: "allow", format: "glob" }] }),
      add("authz-list", "m", { rules: [{ policy: "allow" }] }),
      get("/objects/l", "policy"),
      get("/objects/l", "rules"),
      list("/objects/l"),
      add("authz-list-file", "f", { filename: "users.json" }),
      add("authz-listfile", "f", { filename: "users.json" }, LISTFILE),
      add("authz-listfile", "g", { filename: "none.json" }, LISTFILE),
      add("authz-listfile", "g", { filename: "secret.txt" }, LISTFILE),
      add("authz-listfile", "g"),
      add("authz-pam", "p"),
      del("a"),
      del("l"),
      del("f"),
    ],
  },
];
