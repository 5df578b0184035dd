/**
 * The shapes in which QAPI is written here: valibot schemas that carry their QAPI facts as
 * metadata, and the definitions of commands made of them. Pure.
 * Spec: QEMU docs/devel/qapi-code-gen.rst
 */
import type { GenericSchema, InferOutput, StrictObjectSchema } from "valibot";

/** Members of an object type: wire name → schema; optional ones are wrapped in optional(). */
export type ObjectMembers = Readonly<Record<string, GenericSchema>>;

/** The TypeScript type of checked members. */
export type MembersOutput<Members extends ObjectMembers> = InferOutput<
  StrictObjectSchema<Members, undefined>
>;

/** What a schema knows beyond valibot, kept in its metadata. */
export interface QapiFacts {
  /** Name of the QAPI type. */
  readonly name?: string;
  /** One or two sentences for --help and the API documents. */
  readonly documentation?: string;
  /** Only for integers: C type as QSD's messages name it, and range. */
  readonly integer?: IntegerFacts;
  /** Only for flat unions. */
  readonly union?: UnionFacts;
}

export interface IntegerFacts {
  readonly type: string;
  readonly min: bigint;
  readonly max: bigint;
  /** Takes 4k, 1M, ... on the command line. */
  readonly size: boolean;
}

/** A flat union: `base` holds the tag, whose value chooses the branch of further members. */
export interface UnionFacts {
  readonly base: ObjectMembers;
  readonly tag: string;
  readonly branches: Readonly<Record<string, ObjectMembers>>;
}

/** A flat union as a type: base, tag narrowed, branch. */
export type UnionOutput<
  Base extends ObjectMembers,
  Tag extends string,
  Branches extends Readonly<Record<string, ObjectMembers>>,
> = {
  [Value in keyof Branches & string]: Omit<MembersOutput<Base>, Tag> & {
    [Key in Tag]: Value;
  } & MembersOutput<Branches[Value]>;
}[keyof Branches & string];

/** What a handler may know of where its command came from. */
export interface CommandContext {
  /** The monitor that asked, when one did. */
  readonly monitor?: CommandMonitor;
  /** It is an option of the command line. */
  readonly commandLine?: boolean;
}

/** The only thing that commands do to a monitor: finish its negotiation. */
export interface CommandMonitor {
  negotiate(capabilities: readonly string[]): void;
}

/** One command: QMP, HTTP, command line and introspection follow from it. */
export interface Command<Arguments = unknown, Returns = unknown> {
  readonly name: string;
  /** An object or union schema. */
  readonly arguments: GenericSchema<unknown, Arguments>;
  /** nothing (an object without members) when there is no data. */
  readonly returns: GenericSchema<unknown, Returns>;
  readonly documentation: string;
  /** When it fails, a sentence each. */
  readonly errors: readonly string[];
  readonly features?: readonly string[];
  /** May run before other in-band commands have finished. */
  readonly allowOob?: boolean;
  handler(args: Arguments, context: CommandContext): Returns | Promise<Returns>;
}

/** A command of any type: what tables hold. */
export type AnyCommand = Command<never, unknown>;
