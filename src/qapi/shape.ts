/**
 * Schemas as checking, introspection and help see them: one plain value per schema, made once.
 * Pure.
 */
import type {
  ArraySchema,
  GenericSchema,
  LazySchema,
  OptionalSchema,
  PicklistSchema,
  StrictObjectSchema,
  UnionSchema,
} from "valibot";
import { assert } from "../util/error.ts";
import { factsOf } from "./scalars.ts";
import type { Features, IntegerFacts, ObjectMembers, UnionFacts } from "./types.ts";

/** Types that need no definition, by their names in introspection. */
export type BuiltinType = "any" | "bool" | "int" | "null" | "number" | "str";

export interface BuiltinShape {
  readonly kind: "builtin";
  readonly type: BuiltinType;
  /** Of the type int. */
  readonly integer: IntegerFacts | undefined;
}
export interface EnumShape {
  readonly kind: "enum";
  readonly name: string;
  readonly values: ReadonlySet<string>;
  readonly valueFeatures: Readonly<Record<string, Features>>;
}
interface ArrayShape {
  readonly kind: "array";
  readonly item: GenericSchema;
}
export interface ObjectShape {
  readonly kind: "object";
  /** Empty for the branch of a union. */
  readonly name: string;
  readonly features: Features;
  /** The base of a union. */
  readonly members: readonly Member[];
  /** Only of flat unions. */
  readonly variants: Variants | undefined;
}
export interface AlternateShape {
  readonly kind: "alternate";
  readonly name: string;
  readonly options: readonly GenericSchema[];
}
export type Shape = BuiltinShape | EnumShape | ArrayShape | ObjectShape | AlternateShape;

export interface Member {
  readonly name: string;
  readonly schema: GenericSchema;
  readonly optional: boolean;
  readonly documentation: string | undefined;
  readonly features: Features;
}

export interface Variants {
  readonly tag: string;
  /** For every value of the tag, in its order: members beyond the base. */
  readonly branches: ReadonlyMap<string, ObjectShape>;
}

/** What has the tag "variant" in valibot is a union() of scalars.ts, with facts. */
type AnySchema =
  | ArraySchema<GenericSchema, undefined>
  | LazySchema<GenericSchema>
  | OptionalSchema<GenericSchema, undefined>
  | PicklistSchema<readonly string[], undefined>
  | StrictObjectSchema<ObjectMembers, undefined>
  | UnionSchema<GenericSchema[], undefined>
  | { readonly type: "boolean" | "null" | "number" | "string" | "unknown" | "variant" };

const shapes = new WeakMap<GenericSchema, Shape>();

/** Of what is inside, for an optional or lazy schema. */
export function shapeOf(schema: GenericSchema): Shape {
  const known = shapes.get(schema);
  if (known !== undefined) return known;
  const shape = makeShape(schema);
  shapes.set(schema, shape);
  return shape;
}

function makeShape(schema: GenericSchema): Shape {
  const known = schema as unknown as AnySchema;
  const { name = "", features = [], integer, valueFeatures = {}, union } = factsOf(schema);
  switch (known.type) {
    case "optional":
      return shapeOf(known.wrapped);
    case "lazy":
      return shapeOf(known.getter(undefined));
    case "string":
      return { kind: "builtin", type: "str", integer };
    case "boolean":
      return { kind: "builtin", type: "bool", integer };
    case "number":
      return { kind: "builtin", type: integer === undefined ? "number" : "int", integer };
    case "null":
      return { kind: "builtin", type: "null", integer };
    case "unknown":
      return { kind: "builtin", type: "any", integer };
    case "picklist":
      return { kind: "enum", name, values: new Set(known.options), valueFeatures };
    case "array":
      return { kind: "array", item: known.item };
    case "strict_object":
      return objectShape(name, known.entries, features);
    case "union":
      return { kind: "alternate", name, options: known.options };
    case "variant":
      assert(union !== undefined, "unions are made by union()");
      return unionShape(name, union, features);
  }
}

function objectShape(name: string, members: ObjectMembers, features: Features): ObjectShape {
  return { kind: "object", name, features, members: membersOf(members), variants: undefined };
}

function unionShape(name: string, union: UnionFacts, features: Features): ObjectShape {
  const { base, tag, branches, branchFeatures = {} } = union;
  const tagShape = shapeOf(base[tag] as GenericSchema);
  assert(tagShape.kind === "enum", "the tag of a union is an enumeration");
  const entries = [...tagShape.values].map(
    (value) =>
      [value, objectShape("", branches[value] ?? {}, branchFeatures[value] ?? [])] as const,
  );
  return { ...objectShape(name, base, features), variants: { tag, branches: new Map(entries) } };
}

function membersOf(members: ObjectMembers): readonly Member[] {
  return Object.entries(members).map(([name, schema]) => {
    const { type, wrapped } = schema as unknown as { type: string; wrapped: GenericSchema };
    const optional = type === "optional";
    const { documentation, memberFeatures } = factsOf(optional ? wrapped : schema);
    return { name, schema, optional, documentation, features: memberFeatures ?? [] };
  });
}
