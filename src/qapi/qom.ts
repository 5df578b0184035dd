/** What qom-* commands tell of objects and their types. Pure. Spec: qapi/qom.json */
import type { InferOutput } from "valibot";
import { any, arrayOf, bool, doc, object, optional, str } from "./scalars.ts";

export const objectPropertyInfo = object("ObjectPropertyInfo", {
  name: doc(str, "Name of the property"),
  type: doc(str, "Its type; child<KIND> and link<KIND> are other objects"),
  description: optional(str, "What it is for"),
  "default-value": optional(any, "Its value when nobody sets it"),
});
export type ObjectPropertyInfo = InferOutput<typeof objectPropertyInfo>;

const objectPropertyValue = object("ObjectPropertyValue", {
  name: doc(str, "Name of the property"),
  type: doc(str, "Its type"),
  value: optional(any, "Its value; missing when it cannot be read"),
});
export type ObjectPropertyValue = InferOutput<typeof objectPropertyValue>;

/** What qom-list-get returns per path. */
export const objectPropertiesValues = object("ObjectPropertiesValues", {
  properties: doc(arrayOf(objectPropertyValue), "Properties of one object"),
});

export const objectTypeInfo = object("ObjectTypeInfo", {
  name: doc(str, "Name of the type"),
  abstract: optional(bool, "No object can be of this very type (default: false)"),
  parent: optional(str, "Type that it is derived from"),
});
export type ObjectTypeInfo = InferOutput<typeof objectTypeInfo>;
