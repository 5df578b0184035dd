/**
 * What query-qmp-schema returns: every command and event with the types that they use. Names of
 * types mean nothing to clients, so they are numbers, and equal types have one.
 * Pure. Spec: qapi/introspect.json
 */
import type { GenericSchema } from "valibot";
import {
  type AlternateShape,
  type BuiltinType,
  type EnumShape,
  type Member,
  type ObjectShape,
  type Shape,
  shapeOf,
  type Variants,
} from "./shape.ts";
import type { AnyCommand, Features, QapiEvent } from "./types.ts";

/** A SchemaInfo object. */
export type SchemaInfo = { readonly name: string; readonly "meta-type": string } & Readonly<
  Record<string, unknown>
>;
type Definition = { readonly "meta-type": string } & Readonly<Record<string, unknown>>;
type NamedShape = AlternateShape | EnumShape | ObjectShape;

const JSON_TYPES: Readonly<Record<BuiltinType, string>> = {
  any: "value",
  bool: "boolean",
  int: "int",
  null: "null",
  number: "number",
  str: "string",
};

/** Commands and events first, then the types in the order in which these need them. */
export function introspect(
  commands: readonly AnyCommand[],
  events: readonly QapiEvent[],
): readonly SchemaInfo[] {
  const types = new TypeTable();
  const entries = [
    ...commands.map((command) => ({
      name: command.name,
      "meta-type": "command",
      "arg-type": types.nameOf(command.arguments),
      "ret-type": types.nameOf(command.returns),
      ...(command.allowOob === true ? { "allow-oob": true } : {}),
      ...featuresMember(command.features),
    })),
    ...events.map(({ name, data, features }) => ({
      name,
      "meta-type": "event",
      "arg-type": types.nameOf(data),
      ...featuresMember(features),
    })),
  ];
  return [...entries, ...types.finish()];
}

/** Numbers the types as they come up; defining some may bring up more. */
class TypeTable {
  /** By kind and QAPI name; of branches of unions, which have none, by their definition. */
  #numbers = new Map<string, string>();
  #waiting: { readonly name: string; readonly shape: NamedShape }[] = [];
  #done = new Map<string, SchemaInfo>();

  nameOf(schema: GenericSchema): string {
    return this.#nameOf(shapeOf(schema));
  }

  #nameOf(shape: Shape): string {
    switch (shape.kind) {
      case "builtin": {
        const name = shape.type;
        const type = JSON_TYPES[name];
        this.#done.set(name, { name, "json-type": type, "meta-type": "builtin" });
        return name;
      }
      case "array": {
        const element = this.nameOf(shape.item);
        const name = `[${element}]`;
        this.#done.set(name, { name, "element-type": element, "meta-type": "array" });
        return name;
      }
      default:
        return this.#numberOf(shape);
    }
  }

  #numberOf(shape: NamedShape): string {
    const id = shape.name === "" ? JSON.stringify(this.#define(shape)) : shape.name;
    const key = `${shape.kind} ${id}`;
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    const name = String(this.#numbers.size);
    this.#numbers.set(key, name);
    this.#waiting.push({ name, shape });
    return name;
  }

  /** All that has come up. */
  finish(): readonly SchemaInfo[] {
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      this.#done.set(next.name, { name: next.name, ...this.#define(next.shape) });
    }
    return [...this.#done.values()];
  }

  #define(shape: NamedShape): Definition {
    switch (shape.kind) {
      case "enum":
        return {
          members: [...shape.values].map((name) => ({
            name,
            ...featuresMember(shape.valueFeatures[name]),
          })),
          "meta-type": "enum",
          values: [...shape.values],
        };
      case "alternate":
        return {
          members: shape.options.map((option) => ({ type: this.nameOf(option) })),
          "meta-type": "alternate",
        };
      case "object":
        return {
          members: shape.members.map((member) => this.#member(member)),
          ...this.#variantMembers(shape.variants),
          "meta-type": "object",
          ...featuresMember(shape.features),
        };
    }
  }

  #member({ name, schema, optional, features }: Member): Record<string, unknown> {
    return {
      name,
      ...(optional ? { default: null } : {}),
      type: this.nameOf(schema),
      ...featuresMember(features),
    };
  }

  #variantMembers(variants: Variants | undefined): Record<string, unknown> {
    if (variants === undefined) return {};
    const { tag, branches } = variants;
    return {
      tag,
      variants: [...branches].map(([value, branch]) => ({
        case: value,
        type: this.#nameOf(branch),
      })),
    };
  }
}

function featuresMember(features: Features = []): { readonly features?: Features } {
  return features.length === 0 ? {} : { features };
}
