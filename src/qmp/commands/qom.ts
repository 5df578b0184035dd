/** Commands on the tree of objects. Thread: main. Spec: qapi/qom.json */
import type { QomTree } from "../../objects/qom.ts";
import { defineCommand } from "../../qapi/define.ts";
import { objectPropertiesValues, objectPropertyInfo, objectTypeInfo } from "../../qapi/qom.ts";
import { any, arrayOf, bool, doc, nothing, object, optional, str } from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";

const path = doc(str, "Path from the root, or the end of one that is unique");

export function qomCommands(tree: QomTree): readonly AnyCommand[] {
  return [...readingCommands(tree), ...typeCommands(tree)];
}

function readingCommands(tree: QomTree): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "qom-list",
      documentation: "Lists the properties of an object.",
      errors: ["The path leads nowhere, or to several objects"],
      arguments: object("q_obj_qom-list-arg", { path }),
      returns: arrayOf(objectPropertyInfo),
      handler: (given) => tree.list(given.path),
    }),
    defineCommand({
      name: "qom-get",
      documentation: "Reads a property.",
      errors: ["There is no such object or property", "The property is not readable"],
      arguments: object("q_obj_qom-get-arg", { path, property: doc(str, "Name of the property") }),
      returns: any,
      handler: (given) => tree.get(given.path, given.property),
    }),
    defineCommand({
      name: "qom-list-get",
      documentation: "Reads all properties of several objects.",
      errors: ["A path leads nowhere, or to several objects"],
      arguments: object("q_obj_qom-list-get-arg", { paths: doc(arrayOf(str), "As of qom-get") }),
      returns: arrayOf(objectPropertiesValues),
      handler: ({ paths }) => paths.map((each) => ({ properties: tree.listGet(each) })),
    }),
    defineCommand({
      name: "qom-set",
      documentation: "Changes a property.",
      errors: ["There is no such object or property", "The property does not take the value"],
      arguments: object("q_obj_qom-set-arg", {
        path,
        property: doc(str, "Name of the property"),
        value: doc(any, "As object-add takes it"),
      }),
      returns: nothing,
      async handler({ path, property, value }) {
        await tree.set(path, property, value);
        return {};
      },
    }),
  ];
}

function typeCommands(tree: QomTree): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "qom-list-types",
      documentation: "Lists the types of objects.",
      errors: [],
      arguments: object("q_obj_qom-list-types-arg", {
        implements: optional(str, "Only types that are of this one"),
        abstract: optional(bool, "Also types that no object is of (default: false)"),
      }),
      returns: arrayOf(objectTypeInfo),
      handler: (given) => tree.listTypes(given.implements, given.abstract),
    }),
    defineCommand({
      name: "qom-list-properties",
      documentation: "Lists the properties that objects of a type have.",
      errors: ["There is no such type"],
      arguments: object("q_obj_qom-list-properties-arg", {
        typename: doc(str, "Name of the type"),
      }),
      returns: arrayOf(objectPropertyInfo),
      handler: (given) => tree.listProperties(given.typename),
    }),
  ];
}
