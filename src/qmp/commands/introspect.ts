/** The command that tells of all commands. Thread: main. Spec: qapi/introspect.json */
import { defineCommand } from "../../qapi/define.ts";
import { introspect, type SchemaInfo } from "../../qapi/introspect.ts";
import {
  any,
  arrayOf,
  bool,
  doc,
  enumeration,
  nothing,
  object,
  optional,
  str,
  union,
} from "../../qapi/scalars.ts";
import type { AnyCommand, ObjectMembers, QapiEvent } from "../../qapi/types.ts";

const features = optional(arrayOf(str), "Names of its features");

const enumMembers = {
  members: arrayOf(object("SchemaInfoEnumMember", { name: str, features })),
  values: doc(arrayOf(str), "Names of the members", ["deprecated"]),
} satisfies ObjectMembers;

const objectMembers = {
  members: arrayOf(
    object("SchemaInfoObjectMember", {
      name: str,
      type: doc(str, "Name of its type"),
      default: optional(any, "There, as null, when the member may be missing"),
      features,
    }),
  ),
  tag: optional(str, "Member whose value chooses the variant"),
  variants: optional(
    arrayOf(
      object("SchemaInfoObjectVariant", {
        case: doc(str, "Value of the tag"),
        type: doc(str, "Object type with further members"),
      }),
    ),
    "One per value of the tag",
  ),
} satisfies ObjectMembers;

const schemaInfo = union("SchemaInfo", {
  base: {
    name: doc(str, "Of commands, events and built-in types; else without meaning"),
    "meta-type": enumeration("SchemaMetaType", [
      "builtin",
      "enum",
      "array",
      "object",
      "alternate",
      "command",
      "event",
    ]),
    features,
  },
  tag: "meta-type",
  branches: {
    builtin: {
      "json-type": enumeration("JSONType", [
        "string",
        "number",
        "int",
        "boolean",
        "null",
        "object",
        "array",
        "value",
      ]),
    },
    enum: enumMembers,
    array: { "element-type": doc(str, "Name of the elements' type") },
    object: objectMembers,
    alternate: {
      members: arrayOf(object("SchemaInfoAlternateMember", { type: doc(str, "Name of a type") })),
    },
    command: {
      "arg-type": doc(str, "Name of the type of the arguments"),
      "ret-type": doc(str, "Name of the type of the return value"),
      "allow-oob": optional(bool, "It may run out of band (default: false)"),
    },
    event: { "arg-type": doc(str, "Name of the type of the data") },
  },
});

export interface IntrospectParts {
  /** Every command there is, this one included. */
  readonly commands: () => readonly AnyCommand[];
  readonly events: readonly QapiEvent[];
}

export function introspectCommands({ commands, events }: IntrospectParts): readonly AnyCommand[] {
  let known: readonly SchemaInfo[] | undefined;
  return [
    defineCommand({
      name: "query-qmp-schema",
      documentation: "All commands, events and types of this monitor.",
      errors: [],
      arguments: nothing,
      returns: arrayOf(schemaInfo),
      handler() {
        known ??= introspect(commands(), events);
        return known as never;
      },
    }),
  ];
}
