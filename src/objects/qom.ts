/**
 * The tree in which objects are found by path, and the table of their types. Thread: main.
 * Spec: QEMU qom/object.c, qom/qom-qmp-cmds.c; docs/devel/qom.rst
 */
import { check } from "../qapi/check.ts";
import type { ObjectPropertyInfo, ObjectPropertyValue, ObjectTypeInfo } from "../qapi/qom.ts";
import { object as structure } from "../qapi/scalars.ts";
import { invalid, OutportError } from "../util/error.ts";
import type { ObjectKind, QomObject, QomProperty, QomType } from "./registry.ts";

/** The type that all others come from; it has no parent. */
const OBJECT: QomType = {
  name: "object",
  abstract: true,
  properties: [{ name: "type", type: "string" }],
};
const CONTAINER: QomType = { name: "container", properties: [] };
/** Interfaces have no properties and no objects of their own. */
const INTERFACES: readonly ObjectTypeInfo[] = [
  { abstract: true, name: "interface" },
  { abstract: true, name: "user-creatable", parent: "interface" },
];

/** Objects by name; asked anew each time. */
export type Children = () => Iterable<readonly [string, QomObject]>;

interface Container extends QomObject {
  readonly children: Children;
}

export interface QomParts {
  readonly kinds: readonly ObjectKind[];
  /** /objects */
  readonly objects: Children;
  /** /chardevs */
  readonly chardevs: Children;
  /** Types that no kind of object has. */
  readonly types: readonly QomType[];
}

export class QomTree {
  #root: Container;
  /** By name, parents included. */
  #types = new Map<string, QomType>([OBJECT, CONTAINER].map((type) => [type.name, type]));

  constructor(parts: QomParts) {
    const none: Children = () => [];
    const containers: [string, Container][] = [
      ["backend", container("/backend", none)],
      ["objects", container("/objects", parts.objects)],
      ["chardevs", container("/chardevs", parts.chardevs)],
      ["audiodevs", container("/audiodevs", none)],
    ];
    this.#root = container("", () => containers);
    const kinds = parts.kinds.filter(({ unavailable }) => unavailable === undefined);
    const types = [...parts.types, ...kinds.map(({ type }) => type)];
    for (const type of types.flatMap(lineOf)) this.#types.set(type.name, type);
  }

  /** qom-list */
  list(path: string): ObjectPropertyInfo[] {
    return this.#propertiesOf(this.#resolve(path, "tell")).map(({ name, type }) => ({
      name,
      type,
    }));
  }

  /** qom-get */
  get(path: string, property: string): unknown {
    const object = this.#resolve(path);
    const found = this.#propertyOf(object, property);
    if (found.writeOnly) throw invalid(`Property '${nameOf(object, property)}' is not readable`);
    return readProperty(object, property);
  }

  /** qom-set */
  async set(path: string, property: string, value: unknown): Promise<void> {
    const object = this.#resolve(path);
    const { schema } = this.#propertyOf(object, property);
    if (schema === undefined || object.set === undefined) {
      throw invalid(`Property '${nameOf(object, property)}' is not writable`);
    }
    const checked = check(structure("", { [property]: schema }), { [property]: value });
    await object.set(property, checked[property]);
  }

  /** qom-list-get */
  listGet(path: string): ObjectPropertyValue[] {
    const object = this.#resolve(path, "tell");
    return this.#propertiesOf(object).map(({ name, type, writeOnly }) => ({
      name,
      ...(writeOnly ? {} : { value: readProperty(object, name) }),
      type,
    }));
  }

  /** qom-list-types */
  listTypes(implementing?: string, abstract = false): ObjectTypeInfo[] {
    const types: ObjectTypeInfo[] = [];
    for (const type of this.#types.values()) {
      if (type.abstract && !abstract) continue;
      if (implementing !== undefined && !isA(type, implementing)) continue;
      const parent = parentOf(type);
      types.push({
        ...(type.abstract ? { abstract: true } : {}),
        name: type.name,
        ...(parent === undefined ? {} : { parent: parent.name }),
      });
    }
    const interfaces = INTERFACES.filter(
      ({ name, parent }) => implementing === undefined || [name, parent].includes(implementing),
    );
    return abstract ? [...types, ...interfaces] : types;
  }

  /** qom-list-properties */
  listProperties(typeName: string): ObjectPropertyInfo[] {
    if (INTERFACES.some(({ name }) => name === typeName)) {
      throw invalid("Parameter 'typename' expects a QOM type");
    }
    const type = this.#types.get(typeName);
    if (type === undefined) throw notFound(`Class '${typeName}' not found`);
    return propertiesOfType(type).map(({ name, type }) => ({ name, type }));
  }

  /** `ambiguity`: whether the error tells that a partial path has several meanings. */
  #resolve(path: string, ambiguity: "tell" | "hide" = "hide"): QomObject {
    const parts = path.split("/").filter((part) => part !== "");
    const found = path.startsWith("/")
      ? [descend(this.#root, parts)].filter((object) => object !== undefined)
      : [...ending(this.#root, parts)];
    const [object, second] = found;
    if (second !== undefined && ambiguity === "tell") throw invalid(`Path '${path}' is ambiguous`);
    if (object === undefined || second !== undefined) {
      throw notFound(`Device '${path}' not found`);
    }
    return object;
  }

  #propertiesOf(object: QomObject): QomProperty[] {
    const children = [...childrenOf(object)].map(([name, { type }]) => ({
      name,
      type: `child<${type.name}>`,
    }));
    return [...propertiesOfType(object.type), ...children];
  }

  #propertyOf(object: QomObject, name: string): QomProperty {
    const property = this.#propertiesOf(object).find((each) => each.name === name);
    if (property !== undefined) return property;
    throw invalid(`Property '${nameOf(object, name)}' not found`);
  }
}

/** Its properties are its children: their values are their paths. */
function container(path: string, children: Children): Container {
  return { type: CONTAINER, children, get: (property) => `${path}/${property}` };
}

function childrenOf(object: QomObject): Iterable<readonly [string, QomObject]> {
  return object.type === CONTAINER ? (object as Container).children() : [];
}

function readProperty(object: QomObject, property: string): unknown {
  return property === "type" ? object.type.name : object.get(property);
}

function descend(from: QomObject, parts: readonly string[]): QomObject | undefined {
  const [first, ...rest] = parts;
  if (first === undefined) return from;
  for (const [name, child] of childrenOf(from)) if (name === first) return descend(child, rest);
  return undefined;
}

/** Every object whose path ends with `parts`. */
function* ending(from: QomObject, parts: readonly string[]): Generator<QomObject> {
  const here = descend(from, parts);
  if (here !== undefined) yield here;
  for (const [, child] of childrenOf(from)) yield* ending(child, parts);
}

function parentOf(type: QomType): QomType | undefined {
  return type === OBJECT ? undefined : (type.parent ?? OBJECT);
}

/** The type and those that it comes from. */
function lineOf(type: QomType): QomType[] {
  const parent = parentOf(type);
  return parent === undefined ? [type] : [type, ...lineOf(parent)];
}

function propertiesOfType(type: QomType): QomProperty[] {
  return lineOf(type)
    .reverse()
    .flatMap(({ properties }) => properties);
}

function isA(type: QomType, name: string): boolean {
  const line = lineOf(type);
  if (INTERFACES.some((each) => each.name === name)) return line.some((each) => each.userCreatable);
  return line.some((each) => each.name === name);
}

function nameOf(object: QomObject, property: string): string {
  return `${object.type.name}.${property}`;
}

function notFound(message: string): OutportError {
  return new OutportError("not-found", message, { qapiClass: "DeviceNotFound" });
}
