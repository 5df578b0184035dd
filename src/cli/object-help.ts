/**
 * What --object help shows. Pure.
 * Spec: QEMU qom/object_interfaces.c user_creatable_print_help()
 */
import type { ObjectKind, QomProperty, QomType } from "../objects/registry.ts";

/** The properties of the kind that is named, or the kinds. */
export function objectHelp(kinds: readonly ObjectKind[], name: unknown): string {
  const kind = kinds.find((each) => each.type.name === name && each.unavailable === undefined);
  return kind === undefined ? listKinds(kinds) : describeKind(kind);
}

function listKinds(kinds: readonly ObjectKind[]): string {
  const names = kinds.filter(({ unavailable }) => unavailable === undefined);
  // One kind's name as an object is not that of its type.
  const lines = names.map(({ type }) => `  ${type.name}\n`).sort();
  return `List of user creatable objects:\n${lines.join("")}`;
}

function describeKind({ type, members }: ObjectKind): string {
  const lines = allProperties(type)
    // The others are found out, not set.
    .filter((property) => property.schema !== undefined || Object.hasOwn(members, property.name))
    .map((property) => `  ${property.name}=<${property.type}>\n`);
  if (lines.length === 0) return `There are no options for ${type.name}.\n`;
  return `${type.name} options:\n${lines.sort().join("")}`;
}

function allProperties(type: QomType): readonly QomProperty[] {
  return type.parent === undefined
    ? type.properties
    : [...type.properties, ...allProperties(type.parent)];
}
