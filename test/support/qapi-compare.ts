/**
 * Compares two dumps of query-qmp-schema by structure: names of types mean nothing. What is found
 * are lines: where it is, then what differs.
 */

export interface SchemaEntry {
  readonly name: string;
  readonly "meta-type": string;
  readonly features?: readonly string[];
  readonly "arg-type"?: string;
  readonly "ret-type"?: string;
  readonly "allow-oob"?: boolean;
  readonly "element-type"?: string;
  readonly members?: readonly SchemaMember[];
  readonly values?: readonly string[];
  readonly tag?: string;
  readonly variants?: readonly { readonly case: string; readonly type: string }[];
}

export interface SchemaMember {
  readonly name?: string;
  readonly type?: string;
  readonly default?: null;
  readonly features?: readonly string[];
}

type Table = ReadonlyMap<string, SchemaEntry>;

const tableOf = (entries: readonly SchemaEntry[]): Table =>
  new Map(entries.map((entry) => [entry.name, entry]));

const text = (value: unknown): string => (value === undefined ? "nothing" : JSON.stringify(value));

/**
 * Whatever `ours` lists must be in `theirs` and equal. An enumeration that `isPlugIn` knows by the
 * reference's values may lack some of them, with their variants.
 */
export function compareSchemas(
  ours: readonly SchemaEntry[],
  theirs: readonly SchemaEntry[],
  isPlugIn: (reference: readonly string[]) => boolean,
): string[] {
  const comparison = new Comparison(tableOf(ours), tableOf(theirs), isPlugIn);
  for (const entry of ours) {
    if (entry["meta-type"] === "command" || entry["meta-type"] === "event") {
      comparison.compare(entry.name, entry.name, entry.name);
    }
  }
  return comparison.found;
}

class Comparison {
  readonly found: string[] = [];
  #ours: Table;
  #theirs: Table;
  #isPlugIn: (reference: readonly string[]) => boolean;
  /** Pairs that are compared or being compared: types contain themselves. */
  #seen = new Set<string>();

  constructor(ours: Table, theirs: Table, isPlugIn: (reference: readonly string[]) => boolean) {
    this.#ours = ours;
    this.#theirs = theirs;
    this.#isPlugIn = isPlugIn;
  }

  compare(ourName: string, theirName: string, path: string): void {
    const pair = `${ourName} ${theirName}`;
    if (this.#seen.has(pair)) return;
    this.#seen.add(pair);
    const ours = this.#ours.get(ourName);
    const theirs = this.#theirs.get(theirName);
    if (ours === undefined || theirs === undefined) {
      this.#tell(path, `is ${ours === undefined ? "undefined" : "not in the reference"}`);
      return;
    }
    this.#equal(path, "meta-type", ours["meta-type"], theirs["meta-type"]);
    if (ours["meta-type"] !== theirs["meta-type"]) return;
    this.#equal(path, "features", ours.features, theirs.features);
    switch (ours["meta-type"]) {
      case "builtin":
        this.#equal(path, "type", ours, theirs);
        break;
      case "command":
        this.#equal(path, "allow-oob", ours["allow-oob"], theirs["allow-oob"]);
        this.#type(path, ours["arg-type"], theirs["arg-type"]);
        this.#type(`${path} returns`, ours["ret-type"], theirs["ret-type"]);
        break;
      case "event":
        this.#type(path, ours["arg-type"], theirs["arg-type"]);
        break;
      case "array":
        this.#type(`${path}[]`, ours["element-type"], theirs["element-type"]);
        break;
      case "enum":
        this.#enum(path, ours, theirs);
        break;
      case "alternate":
        this.#alternate(path, ours, theirs);
        break;
      case "object":
        this.#object(path, ours, theirs);
        break;
    }
  }

  #type(path: string, ours: string | undefined, theirs: string | undefined): void {
    this.compare(ours ?? "", theirs ?? "", path);
  }

  #enum(path: string, ours: SchemaEntry, theirs: SchemaEntry): void {
    const { values = [], members = [] } = ours;
    const { values: reference = [], members: referenceMembers = [] } = theirs;
    const known = this.#isPlugIn(reference)
      ? reference.filter((value) => values.includes(value))
      : reference;
    this.#equal(path, "values", [...values].sort(), [...known].sort());
    this.#equal(
      path,
      "values as members",
      members.map(({ name }) => name),
      values,
    );
    for (const { name, features } of members) {
      const other = referenceMembers.find((member) => member.name === name);
      this.#equal(`${path}=${name}`, "features", features, other?.features);
    }
  }

  #alternate(path: string, { members: ours = [] }: SchemaEntry, theirs: SchemaEntry): void {
    const { members: reference = [] } = theirs;
    this.#equal(path, "number of alternatives", ours.length, reference.length);
    for (const [index, member] of ours.entries()) {
      this.#type(`${path}|${index}`, member.type, reference[index]?.type);
    }
  }

  #object(path: string, ours: SchemaEntry, theirs: SchemaEntry): void {
    const { members = [] } = ours;
    const { members: reference = [] } = theirs;
    this.#equal(
      path,
      "members",
      members.map(({ name }) => name),
      reference.map(({ name }) => name),
    );
    for (const member of members) {
      const other = reference.find(({ name }) => name === member.name);
      if (other === undefined) continue;
      const at = `${path}.${member.name}`;
      this.#equal(at, "default", member.default, other.default);
      this.#equal(at, "features", member.features, other.features);
      this.#type(at, member.type, other.type);
    }
    this.#equal(path, "tag", ours.tag, theirs.tag);
    this.#variants(path, ours, theirs);
  }

  /** The tag's values tell which there must be. */
  #variants(path: string, ours: SchemaEntry, theirs: SchemaEntry): void {
    const values = ours.variants?.map((variant) => variant.case) ?? [];
    const tagType = ours.members?.find(({ name }) => name === ours.tag)?.type ?? "";
    this.#equal(path, "variants", values, this.#ours.get(tagType)?.values ?? []);
    for (const { case: value, type } of ours.variants ?? []) {
      const other = theirs.variants?.find((variant) => variant.case === value);
      this.#type(`${path}<${value}>`, type, other?.type);
    }
  }

  #equal(path: string, what: string, ours: unknown, theirs: unknown): void {
    if (text(ours) === text(theirs)) return;
    this.#tell(path, `${what} is ${text(ours)}, not ${text(theirs)}`);
  }

  #tell(path: string, difference: string): void {
    this.found.push(`${path}: ${difference}`);
  }
}
