/** Commands on objects. Thread: main. Spec: qapi/qom.json */
import type { GenericSchema } from "valibot";
import type { ObjectRegistry } from "../../objects/registry.ts";
import { defineCommand } from "../../qapi/define.ts";
import { enumeration, nothing, object, str, union } from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";

type Wire = Readonly<Record<string, unknown>>;

export function objectCommands(objects: ObjectRegistry): readonly AnyCommand[] {
  const { kinds } = objects;
  const options: GenericSchema = union("ObjectOptions", {
    base: {
      "qom-type": enumeration(
        "ObjectType",
        kinds.map(({ name }) => name),
      ),
      id: str,
    },
    tag: "qom-type",
    branches: Object.fromEntries(kinds.map(({ name, members }) => [name, members])),
  });
  return [
    defineCommand({
      name: "object-add",
      documentation: "Creates an object.",
      errors: ["The id is taken or malformed", "A property has a value out of its range"],
      arguments: options as GenericSchema<unknown, Wire>,
      returns: nothing,
      async handler(given) {
        await objects.add(given);
        return {};
      },
    }),
    defineCommand({
      name: "object-del",
      documentation: "Deletes an object.",
      errors: ["There is no such object", "The object is in use"],
      arguments: object("q_obj_object-del-arg", { id: str }),
      returns: nothing,
      async handler({ id }, context) {
        await objects.delete(id, context);
        return {};
      },
    }),
  ];
}
