/**
 * What a block driver is: one literal object in one file of block/drivers. Its schema and child
 * rules serve main, its open() serves an iothread.
 */
import type { GenericSchema } from "valibot";
import type { SecretFinder } from "../crypto/passphrase.ts";
import type { Reactor } from "../io/reactor.ts";
import type { ImageLock, ImpliedChild, IothreadEvent, NodeOpen } from "../iothread/messages.ts";
import type { Features, ObjectMembers } from "../qapi/types.ts";
import type { BlockBackend } from "./backend.ts";
import type { BlockNode } from "./node.ts";

/** What open() gets. */
export interface OpenContext extends Omit<NodeOpen, "driver" | "children"> {
  readonly reactor: Reactor;
  /** A line for the operator. */
  readonly log: (text: string) => void;
  /** Tells main; not missing but in tests. */
  readonly report?: (event: IothreadEvent) => void;
  /** By role: "file", "backing". Open, on the same reactor. */
  readonly children: Readonly<Record<string, BlockNode>>;
}

/** What a parent uses of a child and lets others use. PERM_* bits. */
export interface Permissions {
  readonly used: number;
  readonly shared: number;
}

export interface ChildRule {
  readonly role: string;
  readonly optional: boolean;
  /** null says that there is none. */
  readonly nullable?: boolean;
  /** Member or child that it follows in the schema; default: it stands before all members. */
  readonly after?: string;
}

/** A node of the graph, as bind() sees it. */
export interface NodeView {
  readonly nodeName: string;
  readonly driver: BlockDriver;
  readonly children: readonly { readonly role: string; readonly child: NodeView }[];
}

/** What bind() may look at. */
export interface Surroundings {
  /** The node itself; its children are open. */
  readonly node: NodeView;
  readonly options: Readonly<Record<string, unknown>>;
  findNode(nodeName: string): NodeView | undefined;
  /** An object that a user created. */
  findObject(
    id: string,
  ): { readonly throttleGroup?: SharedArrayBuffer; readonly secret?: Uint8Array } | undefined;
  /** Device numbers of the files that this process serves itself, by FUSE. */
  servedDevices(): readonly number[];
}

/** An open node that a new image, or a part of it, lies on. */
export interface ImageTarget {
  readonly backend: BlockBackend;
  /** How other images name it. */
  readonly filename: string;
}

/** What ImageCreation.create() gets. */
export interface CreateContext {
  readonly reactor: Reactor;
  /** Members of its branch of BlockdevCreateOptions but the nodes, checked, wire names. */
  readonly options: Readonly<Record<string, unknown>>;
  /** See ImageCreation.prepare(). */
  readonly prepared?: unknown;
  /** By member. */
  readonly targets: Readonly<Record<string, ImageTarget>>;
  /** Throws OutportError when the image is not wanted any more: before each longer step. */
  readonly checkWanted: () => void;
  /** Device numbers of the files that this process serves itself, by FUSE. */
  readonly servedDevices: readonly number[];
}

/** What an image needs of a node. */
export interface TargetPlan {
  /** Its length, or more where it can't be less. */
  readonly bytes: number;
  /** What is there stays. */
  readonly keepsData: boolean;
}

/** How a driver makes images, for blockdev-create. */
export interface ImageCreation {
  /** Members of its branch of BlockdevCreateOptions that are nodes. */
  readonly nodes: readonly Pick<ChildRule, "role" | "optional" | "after">[];
  /** The other members. `driverName`: of a member that names a driver. */
  members(driverName: GenericSchema): ObjectMembers;
  /** On main: checks the options; what it needs of its nodes. Throws OutportError. */
  plan?(
    options: Readonly<Record<string, unknown>>,
    roles: readonly string[],
  ): Readonly<Record<string, TargetPlan>>;
  /**
   * On main, before anything is touched: what takes secrets, or long computations. Structured-
   * cloneable. Throws OutportError.
   */
  prepare?(
    options: Readonly<Record<string, unknown>>,
    findSecret: SecretFinder,
    roles: readonly string[],
  ): Promise<unknown>;
  /** On the iothread of the nodes, which are long enough. Throws OutportError. */
  create(context: CreateContext): Promise<void>;
}

export interface BlockDriver {
  /** Its BlockdevDriver value. */
  readonly name: string;
  /** Its branch of the BlockdevOptions union, without children. */
  readonly members: ObjectMembers;
  readonly children: readonly ChildRule[];
  /** Of its branch, for introspection. */
  readonly features?: Features;
  /** Members that decide what a guest sees: they go into the json: name of the image. */
  readonly strongOptions?: readonly string[];
  /** Role of the child that it filters; that child's image shows behind its own. */
  readonly filtered?: string;
  /**
   * A file name that opens the same tree, made of those of its children by role. Missing: see
   * NodeDescription.
   */
  exactFilename?(
    options: Readonly<Record<string, unknown>>,
    filenameOf: (role: string) => string | undefined,
  ): string | undefined;
  /** Whether a file that begins with these PROBE_BYTES, or is as short, is an image of its own. */
  probe?(start: Uint8Array): boolean;
  /** Whether such an image names other files that are opened with it. */
  namesFiles?(start: Uint8Array): boolean;
  /** It opens images for reading only. */
  readonly onlyReads?: boolean;
  /** Its images can have internal snapshots. */
  readonly hasSnapshots?: boolean;
  /** It makes an image of its own: a host file, zeroes; not a view of what its child has. */
  readonly isProtocol?: boolean;
  /** What it asks of a child when its own parents ask `of`. Only drivers with children have it. */
  childPermissions?(
    role: string,
    of: Permissions,
    options: Readonly<Record<string, unknown>>,
    writable: boolean,
  ): Permissions;
  /** Its own members that a reopen may change or leave out. Missing: it can't be reopened. */
  readonly reopenable?: readonly string[];
  /** Those that it may change, but not leave out. */
  readonly changeable?: readonly string[];
  /**
   * On main, before open(): what the node needs to know beside its options and children, as
   * `context.bound`. Structured-cloneable. Throws OutportError.
   */
  bind?(surroundings: Surroundings): unknown;
  /**
   * On the iothread, before open(): children that the image itself names, of those roles that the
   * options leave out; `context` has the "file" child only. Throws OutportError, also when the
   * image can't be opened at all.
   */
  impliedChildren?(context: OpenContext): Promise<readonly ImpliedChild[]>;
  /** Missing: it opens no encrypted images. */
  readonly encryption?: {
    /** The object with the passphrase, if the options name one. */
    keySecret(options: Readonly<Record<string, unknown>>): string | undefined;
    /**
     * On the iothread, before open(), which gets the key that main finds. Null: the image is not
     * encrypted. Throws OutportError.
     */
    readLock(context: OpenContext): Promise<ImageLock | null>;
  };
  /** Name of the node down to which the links of its chain must stay; bind() has found it. */
  chainBottom?(options: Readonly<Record<string, unknown>>): string | undefined;
  /** Missing: it makes no images. */
  readonly creation?: ImageCreation;
  /** Throws OutportError in QSD's words; leaves nothing behind then. */
  open(context: OpenContext): Promise<BlockNode>;
}
