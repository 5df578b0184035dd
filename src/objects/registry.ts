/**
 * The objects that users create, by id. Thread: main.
 * Spec: qapi/qom.json object-add, object-del; QEMU qom/object_interfaces.c
 */
import { isWellformedId } from "../block/catalogue.ts";
import type { ObjectMembers } from "../qapi/types.ts";
import { OutportError } from "../util/error.ts";

/** An object that exists. */
export interface UserObject {
  /** Gives up what it holds. Throws in-use and changes nothing while somebody needs it. */
  delete(): Promise<void>;
}

/** One kind: a literal object in its own file. */
export interface ObjectKind {
  /** Its ObjectType value. */
  readonly name: string;
  /** Its branch of ObjectOptions. */
  readonly members: ObjectMembers;
  /** Refuses values that the schema lets through. Throws an OutportError. */
  validate?(options: Readonly<Record<string, unknown>>): void;
  create(id: string, options: Readonly<Record<string, unknown>>): Promise<UserObject>;
}

export class ObjectRegistry {
  readonly kinds: readonly ObjectKind[];
  #objects = new Map<string, UserObject>();

  constructor(kinds: readonly ObjectKind[]) {
    this.kinds = kinds;
  }

  /** object-add: ObjectOptions with wire names, checked against the schema. */
  async add(options: Readonly<Record<string, unknown>>): Promise<void> {
    const { "qom-type": type, id, ...own } = options as { "qom-type": string; id: string };
    const kind = this.kinds.find(({ name }) => name === type);
    if (kind === undefined) throw new OutportError("invalid", `invalid object type: ${type}`);
    if (!isWellformedId(id)) {
      throw new OutportError("invalid", "Parameter 'id' expects an identifier");
    }
    kind.validate?.(own);
    if (this.#objects.has(id)) {
      const message = `attempt to add duplicate property '${id}' to object (type 'container')`;
      throw new OutportError("in-use", message);
    }
    this.#objects.set(id, await kind.create(id, own));
  }

  /** object-del */
  async delete(id: string): Promise<void> {
    const object = this.#objects.get(id);
    if (object === undefined) throw new OutportError("not-found", `object '${id}' not found`);
    await object.delete();
    this.#objects.delete(id);
  }
}
