/**
 * Draws random sequences of QMP commands out of a daemon's own schema: names from small pools, so
 * that they collide and come again, mostly valid arguments, and now and then a broken one.
 */

import type { Random } from "../../support/random.ts";
import { ask, type Step } from "./script.ts";

/** One element of what query-qmp-schema returns. */
export interface SchemaEntity {
  readonly name: string;
  readonly "meta-type": string;
  readonly "arg-type"?: string;
  readonly "element-type"?: string;
  readonly "json-type"?: string;
  readonly tag?: string;
  readonly members?: readonly Member[];
  readonly variants?: readonly { readonly case: string; readonly type: string }[];
}
interface Member {
  readonly name: string;
  readonly type: string;
  readonly default?: null;
}
type Args = Record<string, unknown>;

const IDS = ["a", "b", "c", "d"];
const NODES = ["f", "g", "r", "t", "n", "m"];
const FILES = ["disk.raw", "other.raw", "odd.raw", "empty.raw", "none.raw", "directory"];
const SIZES = [0, 512, 4096, 65536, 1048576, 1000, 2097152, -512, 1];
const INTEGERS = [1, 2, 512, 4096, 0, 100, 65536, 3, -1, 2 ** 31, 2 ** 33];
const PERIODS = [1, 2, 60, 0];
const FACTS = ["limits", "type", "policy", "identity", "data", "poll-max-ns", "aio-max-batch"];

/** What strings and numbers are drawn from, by "command.member" or by the member alone. */
const POOLS: Record<string, readonly unknown[]> = {
  "node-name": NODES,
  device: NODES,
  node: NODES,
  bottom: NODES,
  id: IDS,
  chardev: [...IDS, "qmp"],
  "throttle-group": IDS,
  iothread: IDS,
  "tls-creds": IDS,
  "tls-authz": IDS,
  name: [...IDS, ...NODES, ""],
  bitmap: IDS,
  filename: FILES,
  out: ["out.txt", "none/out.txt"],
  in: ["disk.raw", "none"],
  logfile: ["log.txt"],
  file: ["secret.txt", "none.txt"],
  config: ["rules.cfg", "none.cfg"],
  path: ["nbd.sock", "two.sock", "none/x.sock"],
  host: ["127.0.0.1"],
  port: ["0"],
  cid: ["x"],
  str: ["nofd"],
  data: ["dGV4dA==", "text", ""],
  iv: ["dGV4dA==", ""],
  keyid: IDS,
  size: SIZES,
  offset: SIZES,
  "write-threshold": [0, 512, 4096, 1048576],
  wait: [false],
  "latency-ns": [0, 1, 1_000_000, -1],
  "delay-ns": [0, 1_000_000, -1],
  property: [...FACTS, "x-bps-total", "x-iops-total-max", "rules", "none"],
  typename: ["iothread", "secret", "object", "throttle-group", "none", "authz-simple"],
  implements: ["user-creatable", "authz", "none", "object"],
  "qom-list.path": ["/objects", "/", "/chardevs", "objects", "/none", "/objects/a", "/objects/b"],
  "qom-get.path": IDS.map((id) => `/objects/${id}`),
  "qom-set.path": [...IDS.map((id) => `/objects/${id}`), "a"],
  paths: IDS.map((id) => `/objects/${id}`),
  value: [1, 0, 4096, -1, true, "text", null, { "bps-total": 1 }, { "iops-read": 5 }, [], "allow"],
};

/** What breaks a member. */
const ODDITIES = [null, true, 1, -1, 1.5, 2 ** 64, "", "x".repeat(40), "1a", "é%s", [], {}, [{}]];

const WEIGHTS: Record<string, number> = {
  ...{ qmp_capabilities: 0, quit: 0, "query-version": 0, "query-qmp-schema": 0 },
  ...{ "query-commands": 0, "chardev-send-break": 1, "x-debug-query-block-graph": 2 },
  ...{ "blockdev-add": 14, "blockdev-del": 6, "blockdev-reopen": 8, "block-export-add": 8 },
  ...{ "block-export-del": 4, "object-add": 8, "object-del": 4, "chardev-add": 5 },
  ...{ "query-named-block-nodes": 2, "query-block-exports": 2 },
};

/** A start that gives the rest something to work on: each of these mostly happens. */
const PRELUDE: readonly Step[] = [
  ask("object-add", { "qom-type": "iothread", id: "a" }),
  ask("object-add", { "qom-type": "throttle-group", id: "b", limits: { "iops-total": 5000 } }),
  ask("object-add", { "qom-type": "iothread", id: "c" }),
  ask("nbd-server-start", { addr: { type: "unix", data: { path: "nbd.sock" } } }),
  ask("blockdev-add", { driver: "file", "node-name": "f", filename: "disk.raw" }),
  ask("blockdev-add", { driver: "raw", "node-name": "r", file: "f" }),
  ask("blockdev-add", { driver: "null-co", "node-name": "n", size: 65536 }),
  ask("blockdev-add", { driver: "throttle", "node-name": "t", "throttle-group": "b", file: "n" }),
  ask("block-export-add", { type: "nbd", id: "a", "node-name": "r", writable: true }),
];

/** What shows the state that a sequence has led to. */
export const LOOKS: readonly Step[] = [
  ask("query-named-block-nodes"),
  ask("x-debug-query-block-graph"),
  ask("query-block-exports"),
  ask("query-blockstats", { "query-nodes": true }),
  ask("qom-list", { path: "/objects" }),
  ask("query-chardev"),
];

export class Drawing {
  #random: Random;
  #types: ReadonlyMap<string, SchemaEntity>;
  #commands: readonly SchemaEntity[];
  #nodes: Args[] = [];
  #broken: number;
  #command = "";

  /** `broken`: the share of commands that get a wrong argument on purpose. */
  constructor(schema: readonly SchemaEntity[], random: Random, broken = 0.06) {
    this.#random = random;
    this.#broken = broken;
    this.#types = new Map(schema.map((entity) => [entity.name, entity]));
    this.#commands = schema
      .filter((entity) => entity["meta-type"] === "command")
      .flatMap((entity) => Array<SchemaEntity>(WEIGHTS[entity.name] ?? 3).fill(entity));
  }

  sequence(): Step[] {
    const steps = PRELUDE.filter(() => this.#random.chance(0.8));
    const count = 30 + this.#random.below(71);
    while (steps.length < count) steps.push(this.step());
    return [...steps, ...LOOKS];
  }

  step(): Step {
    const { name, "arg-type": type } = this.#random.pick(this.#commands);
    this.#command = name;
    const args = this.#object(type as string, 0);
    if (name === "blockdev-add") this.#nodes.push(args);
    if (name === "blockdev-reopen" && this.#nodes.length > 0 && this.#random.chance(0.85)) {
      args.options = [this.#changed(this.#random.pick(this.#nodes))];
    }
    if (this.#random.chance(this.#broken)) this.#break(args);
    return ask(name, args);
  }

  /** The node's options again, one of them drawn anew. */
  #changed(node: Args): Args {
    const other = this.#variant(this.#optionsType(), node.driver, 0);
    const name = this.#random.pick(Object.keys(other));
    return name === "node-name" ? { ...node } : { ...node, [name]: other[name] };
  }

  #optionsType(): SchemaEntity {
    const add = this.#commands.find(({ name }) => name === "blockdev-add") as SchemaEntity;
    return this.#types.get(add["arg-type"] as string) as SchemaEntity;
  }

  #object(type: string, depth: number): Args {
    const entity = this.#types.get(type) as SchemaEntity;
    const tag = entity.members?.find(({ name }) => name === entity.tag);
    return this.#variant(entity, tag && this.#value(tag, depth), depth);
  }

  #variant(entity: SchemaEntity, tagValue: unknown, depth: number): Args {
    const variant = entity.variants?.find((each) => each.case === tagValue);
    const args: Args = entity.tag === undefined ? {} : { [entity.tag]: tagValue };
    for (const member of entity.members ?? []) {
      if (member.name === entity.tag || !this.#isWanted(member, depth)) continue;
      const value = this.#value(member, depth);
      if (JSON.stringify(value) !== "{}") args[member.name] = value;
    }
    return variant === undefined ? args : { ...args, ...this.#object(variant.type, depth) };
  }

  #isWanted({ name, default: byDefault }: Member, depth: number): boolean {
    if (byDefault !== null || name === "wait") return true;
    if (name === "pr-manager") return this.#random.chance(0.01);
    if (name === "node-name") return this.#random.chance(depth === 0 ? 0.98 : 0.5);
    return this.#random.chance(name === "server" || name === "writable" ? 0.5 : 0.12);
  }

  #value(member: Member, depth: number): unknown {
    const entity = this.#types.get(member.type) as SchemaEntity;
    switch (entity["meta-type"]) {
      case "enum":
        return this.#random.pick(entity.members as readonly Member[]).name;
      case "object":
        return this.#object(member.type, depth + 1);
      case "array": {
        const type = entity["element-type"] as string;
        const items = Array.from({ length: this.#random.below(3) });
        return items.map(() => this.#value({ name: member.name, type }, depth));
      }
      case "alternate":
        return this.#alternate(member.name, entity, depth);
      default:
        return this.#scalar(member.name, entity["json-type"] as string);
    }
  }

  /** References to nodes are mostly names, and inline definitions do not go deep. */
  #alternate(name: string, entity: SchemaEntity, depth: number): unknown {
    const types = (entity.members ?? []).map(({ type }) => type);
    const inline = types.find((type) => this.#types.get(type)?.tag === "driver");
    if (inline === undefined) return this.#value({ name, type: this.#random.pick(types) }, depth);
    if (depth < 2 && this.#random.chance(0.35)) return this.#object(inline, depth + 1);
    return this.#random.pick(NODES);
  }

  #scalar(name: string, type: string): unknown {
    const pool = POOLS[`${this.#command}.${name}`] ?? POOLS[name];
    if (pool !== undefined) return this.#random.pick(pool);
    if (type === "boolean") return this.#random.chance(0.5);
    if (type === "string") return this.#random.pick(IDS);
    if (type === "null") return null;
    return this.#random.pick(name.endsWith("-length") ? PERIODS : INTEGERS);
  }

  #break(args: Args): void {
    const name = this.#random.pick([...Object.keys(args), "foo"]);
    const value = args[name];
    const isNested = typeof value === "object" && value !== null && !Array.isArray(value);
    if (isNested && this.#random.chance(0.7)) this.#break(value as Args);
    else if (this.#random.chance(0.3)) delete args[name];
    else args[name] = this.#random.pick(ODDITIES);
  }
}
