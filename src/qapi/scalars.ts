/**
 * QAPI's built-in types and the ways to combine them, as valibot schemas. Pure.
 * Spec: QEMU docs/devel/qapi-code-gen.rst
 */

import type { GenericSchema } from "valibot";
import * as v from "valibot";
import type { Features, ObjectMembers, QapiFacts, UnionFacts, UnionOutput } from "./types.ts";

/** The QAPI facts of a schema; inner ones give way to outer ones. */
export function factsOf(schema: GenericSchema): QapiFacts {
  return v.getMetadata(schema) as QapiFacts;
}

function facts<Schema extends GenericSchema>(schema: Schema, qapi: QapiFacts): Schema {
  // A pipe of metadata changes neither the input nor the output type.
  return v.pipe(schema, v.metadata(qapi as Record<string, unknown>)) as unknown as Schema;
}

function integer(type: string, min: bigint, max: bigint, size = false) {
  const schema = v.pipe(
    v.number(),
    v.integer(),
    v.minValue(Number(min)),
    v.maxValue(Math.min(Number(max), Number.MAX_SAFE_INTEGER)),
  );
  return facts(schema, { integer: { type, min, max, size } });
}

export const str = v.string();
export const bool = v.boolean();
/** A double. */
export const number = v.number();
export const any = v.unknown();
export const nothing = v.strictObject({});
export const nullValue = v.null();

/** QAPI's `int` is an int64. Values are safe integers: what lies beyond counts as the last one. */
export const int = integer("int64_t", -(2n ** 63n), 2n ** 63n - 1n);
export const int32 = integer("int32_t", -(2n ** 31n), 2n ** 31n - 1n);
export const uint16 = integer("uint16_t", 0n, 2n ** 16n - 1n);
export const uint32 = integer("uint32_t", 0n, 2n ** 32n - 1n);
export const uint64 = integer("uint64_t", 0n, 2n ** 64n - 1n);
/** An uint64 of bytes, with suffixes on the command line. */
export const size = integer("uint64_t", 0n, 2n ** 64n - 1n, true);

/** The schema of a member with its documentation and features. */
export function doc<Schema extends GenericSchema>(
  schema: Schema,
  documentation: string,
  features?: Features,
): Schema {
  return facts(schema, {
    documentation,
    ...(features === undefined ? {} : { memberFeatures: features }),
  });
}

/** A member that may be missing. Defaults are the business of who uses the value. */
export function optional<Schema extends GenericSchema>(
  schema: Schema,
  documentation?: string,
  features?: Features,
): v.OptionalSchema<Schema, undefined> {
  return v.optional(documentation === undefined ? schema : doc(schema, documentation, features));
}

/** `valueFeatures`: by value, for those that have some. */
export function enumeration<const Values extends readonly string[]>(
  name: string,
  values: Values,
  valueFeatures?: Readonly<Partial<Record<Values[number], Features>>>,
) {
  return facts(v.picklist(values), {
    name,
    ...(valueFeatures === undefined
      ? {}
      : { valueFeatures: valueFeatures as Readonly<Record<string, Features>> }),
  });
}

export function arrayOf<Item extends GenericSchema>(item: Item): v.ArraySchema<Item, undefined> {
  return v.array(item);
}

/** A struct. Member order is the order of checks. `features` are the type's. */
export function object<const Members extends ObjectMembers>(
  name: string,
  members: Members,
  features?: Features,
) {
  return facts(v.strictObject(members), { name, ...(features === undefined ? {} : { features }) });
}

/** A flat union. `base` has the member `tag`, an enumeration of the branches' names. */
export function union<
  const Base extends ObjectMembers,
  const Tag extends string,
  const Branches extends Readonly<Record<string, ObjectMembers>>,
>(
  name: string,
  definition: UnionFacts & { readonly base: Base; readonly tag: Tag; readonly branches: Branches },
): GenericSchema<UnionOutput<Base, Tag, Branches>, UnionOutput<Base, Tag, Branches>> {
  const { base, tag, branches } = definition;
  const { options: values } = base[tag] as unknown as v.PicklistSchema<string[], undefined>;
  const options = values.map((value) =>
    v.strictObject({ ...base, ...branches[value], [tag]: v.literal(value) }),
  );
  const schema = v.variant(tag, options as never) as GenericSchema<never, never>;
  return facts(schema, { name, union: definition }) as never;
}

/** One of several types, told apart by the JSON type of the value. */
export function alternate<const Options extends readonly GenericSchema[]>(
  name: string,
  options: Options,
) {
  return facts(v.union(options as unknown as [...Options]), { name });
}

/** For types that contain themselves. */
export function lazy<Schema extends GenericSchema>(getter: () => Schema): v.LazySchema<Schema> {
  return v.lazy(getter);
}
