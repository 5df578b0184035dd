/**
 * The objects that users create, by id, and what a kind of object is. Thread: main.
 * Spec: qapi/qom.json object-add, object-del; QEMU qom/object_interfaces.c
 */
import type { GenericSchema } from "valibot";
import { isWellformedId } from "../block/catalogue.ts";
import type { CommandContext, ObjectMembers } from "../qapi/types.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { trace } from "../util/trace.ts";

type Wire = Readonly<Record<string, unknown>>;

/** A property as qom-list and its relatives see it. */
export interface QomProperty {
  readonly name: string;
  /** As qom-list says: "int", "string", "bool", or the name of a QAPI type. */
  readonly type: string;
  /** What qom-set takes; without it the property is not writable. */
  readonly schema?: GenericSchema;
  /** Has no value to see. */
  readonly writeOnly?: true;
}

/** A type as qom-list-types shows it. */
export interface QomType {
  readonly name: string;
  /** Default: object. */
  readonly parent?: QomType;
  readonly abstract?: true;
  /** Implements the interface user-creatable. Parents count. */
  readonly userCreatable?: true;
  /** Its own ones, beside its parents', in the order of QSD's lists. */
  readonly properties: readonly QomProperty[];
}

/** Anything in the tree of objects. */
export interface QomObject {
  readonly type: QomType;
  /** The value of a property of its type that is not write-only, in wire form. */
  get(property: string): unknown;
  /** qom-set; `value` is checked. Throws an OutportError and changes nothing. */
  set?(property: string, value: unknown): void | Promise<void>;
}

/** An object of authorization, as `tls-authz` and its like name one. */
export interface Authorizer {
  /** Whether the peer of this name may come in. */
  isAllowed(identity: string): boolean;
}

/** An object that users create and delete. */
export interface UserObject extends QomObject, Partial<Authorizer> {
  /** Gives up what it holds. Throws in-use and changes nothing while somebody needs it. */
  delete(context: CommandContext): Promise<void>;
  /** Only secrets: the clear bytes, owned by the object. */
  readonly secret?: Uint8Array;
  /** Only throttle groups: see block/throttle-group.ts. */
  readonly throttleGroup?: SharedArrayBuffer;
}

/** How an object finds others while it is made. */
export interface ObjectFinder {
  find(id: string): UserObject | undefined;
}

/** One kind: a literal object in its own file. */
export interface ObjectKind {
  /** Its ObjectType value. */
  readonly name: string;
  /** Its branch of ObjectOptions. */
  readonly members: ObjectMembers;
  /** Of its objects. Other kinds may have the same parent. */
  readonly type: QomType;
  /** Why there are no objects of this kind here. */
  readonly unavailable?: string;
  /** Refuses values that the schema lets through, before the id is looked at. */
  validate?(options: Wire): void;
  /** A failure leaves nothing behind. */
  create(id: string, options: Wire, objects: ObjectFinder): Promise<UserObject>;
}

export class ObjectRegistry implements ObjectFinder {
  readonly kinds: readonly ObjectKind[];
  /** Undefined while the object is made or deleted: then its id is taken, but nobody finds it. */
  #objects = new Map<string, UserObject | undefined>();
  #log: Log;

  constructor(kinds: readonly ObjectKind[], log: Log = () => {}) {
    this.kinds = kinds;
    this.#log = log;
  }

  find(id: string): UserObject | undefined {
    return this.#objects.get(id);
  }

  /** Every object by id, oldest first. */
  *list(): Generator<readonly [string, UserObject]> {
    for (const [id, object] of this.#objects) if (object !== undefined) yield [id, object];
  }

  /** object-add: ObjectOptions with wire names, checked against the schema. */
  async add(options: Wire): Promise<void> {
    const { "qom-type": name, id, ...own } = options as { "qom-type": string; id: string };
    const kind = this.kinds.find((each) => each.name === name);
    if (kind === undefined || kind.unavailable !== undefined) {
      const reason = kind === undefined ? "" : ` (${kind.unavailable})`;
      throw new OutportError("unsupported", `invalid object type: ${name}${reason}`);
    }
    if (!isWellformedId(id)) {
      throw new OutportError("invalid", "Parameter 'id' expects an identifier");
    }
    kind.validate?.(own);
    // The container that would hold it has a property of this name, too.
    if (id === "type" || this.#objects.has(id)) {
      const message = `attempt to add duplicate property '${id}' to object (type 'container')`;
      throw new OutportError("in-use", message);
    }
    this.#objects.set(id, undefined);
    try {
      if (trace.object_new.enabled) trace.object_new.write(`id=${id} type=${name}`);
      this.#objects.set(id, await kind.create(id, own, this));
      if (trace.user_creatable_complete.enabled) {
        trace.user_creatable_complete.write(`id=${id} type=${name}`);
      }
      this.#log("info", "object created", { id, type: name });
    } catch (error) {
      this.#objects.delete(id);
      throw error;
    }
  }

  /** object-del */
  async delete(id: string, context: CommandContext = {}): Promise<void> {
    const object = this.find(id);
    if (object === undefined) throw new OutportError("not-found", `object '${id}' not found`);
    this.#objects.set(id, undefined);
    try {
      await object.delete(context);
    } catch (error) {
      this.#objects.set(id, object);
      throw error;
    }
    this.#objects.delete(id);
    if (trace.object_finalize.enabled) trace.object_finalize.write(`id=${id}`);
    this.#log("info", "object deleted", { id });
  }
}
