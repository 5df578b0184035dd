/**
 * The shapes in which QAPI is written here: valibot schemas that carry their QAPI facts as
 * metadata, and the definitions of commands and events made of them. Pure.
 * Spec: QEMU docs/devel/qapi-code-gen.rst
 */
import type { GenericSchema, InferOutput, StrictObjectSchema } from "valibot";

/** Members of an object type: wire name → schema; optional ones are wrapped in optional(). */
export type ObjectMembers = Readonly<Record<string, GenericSchema>>;

/** The TypeScript type of checked members. */
export type MembersOutput<Members extends ObjectMembers> = InferOutput<
  StrictObjectSchema<Members, undefined>
>;

/** As introspection tells them: "deprecated", "unstable", or the name of a fine point. */
export type Features = readonly string[];

/** What a schema knows beyond valibot, kept in its metadata. */
export interface QapiFacts {
  /** Name of the QAPI type. */
  readonly name?: string;
  /** One or two sentences for --help and the API documents; of the member where there is one. */
  readonly documentation?: string;
  /** Of the type. */
  readonly features?: Features;
  /** Of the member that has the schema. */
  readonly memberFeatures?: Features;
  /** Only for enumerations: those of values that have some. */
  readonly valueFeatures?: Readonly<Record<string, Features>>;
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
  /** A value of the tag without an entry has no further members. */
  readonly branches: Readonly<Record<string, ObjectMembers>>;
  /** Features of the branches' types. */
  readonly branchFeatures?: Readonly<Record<string, Features>>;
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

/** What commands know of a monitor, and do to it. */
export interface CommandMonitor {
  /** Of its object. */
  readonly id: string;
  /** Finishes its negotiation. Throws CommandNotFound when that is done already. */
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
  readonly features?: Features;
  /** May run before other in-band commands have finished. */
  readonly allowOob?: boolean;
  handler(args: Arguments, context: CommandContext): Returns | Promise<Returns>;
}

/** A command of any type: what tables hold. */
export type AnyCommand = Command<never, unknown>;

/** One event. Area files define them beside their commands. */
export interface QapiEvent<
  Name extends string = string,
  Data extends GenericSchema = GenericSchema,
> {
  readonly name: Name;
  /** An object schema. */
  readonly data: Data;
  /** When it happens. */
  readonly documentation: string;
  readonly features?: Features;
  /**
   * At most one per `ms`: the first goes out at once, later ones wait and the last of them counts.
   * `by`: members of the data; events that differ in them are limited apart.
   */
  readonly rateLimit?: { readonly ms: number; readonly by?: readonly string[] };
}

/** From the name of each event in a table to the type of its data. */
export type EventMap<Events extends readonly QapiEvent[]> = {
  readonly [Event in Events[number] as Event["name"]]: Readonly<InferOutput<Event["data"]>>;
};
