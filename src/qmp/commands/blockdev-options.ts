/** What blockdev-add and blockdev-reopen take. Pure. Spec: qapi/block-core.json BlockdevOptions */
import type { GenericSchema } from "valibot";
import { blockdevCommonMembers } from "../../block/catalogue.ts";
import type { BlockDriver, ChildRule } from "../../block/driver.ts";
import {
  alternate,
  doc,
  enumeration,
  lazy,
  nullValue,
  optional,
  str,
  union,
} from "../../qapi/scalars.ts";
import type { ObjectMembers } from "../../qapi/types.ts";

type Wire = Readonly<Record<string, unknown>>;

/** One branch per driver: its children before its own members, unless a child says otherwise. */
export function blockdevOptions(drivers: readonly BlockDriver[]): GenericSchema<unknown, Wire> {
  const self: GenericSchema = lazy(() => options);
  const reference = alternate("BlockdevRef", [self, str]);
  const referenceOrNull = alternate("BlockdevRefOrNull", [self, str, nullValue]);
  const branch = ({ children, members }: BlockDriver): ObjectMembers =>
    withChildren(children, members, ({ optional: mayMiss, nullable }) => {
      const schema = nullable === true ? referenceOrNull : reference;
      return mayMiss ? optional(schema, CHILD) : doc(schema, CHILD);
    });
  const options: GenericSchema = union("BlockdevOptions", {
    base: {
      driver: doc(
        enumeration(
          "BlockdevDriver",
          drivers.map(({ name }) => name),
        ),
        "Block driver",
      ),
      ...blockdevCommonMembers,
    },
    tag: "driver",
    branches: Object.fromEntries(drivers.map((driver) => [driver.name, branch(driver)])),
    branchFeatures: Object.fromEntries(drivers.map(({ name, features = [] }) => [name, features])),
  });
  return options as GenericSchema<unknown, Wire>;
}

/** Members, with children before them or where they say that they stand. */
export function withChildren<Rule extends Pick<ChildRule, "role" | "after">>(
  children: readonly Rule[],
  members: ObjectMembers,
  schemaOf: (rule: Rule) => GenericSchema,
): ObjectMembers {
  const childrenAfter = (place: string | undefined): [string, GenericSchema][] =>
    children
      .filter(({ after }) => after === place)
      .flatMap((rule) => [[rule.role, schemaOf(rule)], ...childrenAfter(rule.role)]);
  const own = Object.entries(members).flatMap((member) => [member, ...childrenAfter(member[0])]);
  return Object.fromEntries([...childrenAfter(undefined), ...own]);
}

const CHILD = "Node below: the name of one that exists, or its definition";
