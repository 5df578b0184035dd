/**
 * blockdev-create as a job: makes an image, on nodes or where its options say. Thread: main.
 * Spec: qapi/block-core.json blockdev-create; QEMU block/create.c
 */
import type { BlockDriver, ImageCreation, Permissions, TargetPlan } from "../block/driver.ts";
import type { BlockGraph, RootUse } from "../block/graph.ts";
import { imageFilename } from "../block/image-names.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from "../block/node.ts";
import { truncate } from "../block/resize.ts";
import type { SecretFinder } from "../crypto/passphrase.ts";
import type { ImageCreate } from "../iothread/messages.ts";
import { type Iothread, type Iothreads, MAIN_LOOP } from "../iothread/pool.ts";
import { ECANCELED, strerror } from "../runtime/errno.ts";
import { assert, OutportError } from "../util/error.ts";
import type { Job, JobWork } from "./job.ts";

type Wire = Readonly<Record<string, unknown>>;

/** As QSD asks for them, so that it is said in its words who is in the way. */
const TO_WRITE: Permissions = { used: PERM_WRITE | PERM_RESIZE, shared: PERM_ALL };
/** What it makes is nobody else's until it is done. */
const ALONE: Permissions = {
  used: PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
  shared: PERM_ALL & ~(PERM_WRITE | PERM_RESIZE),
};

export interface CreateJobParts {
  readonly graph: BlockGraph;
  readonly iothreads: Iothreads;
  readonly drivers: readonly BlockDriver[];
  readonly servedDevices: () => readonly number[];
  readonly findSecret: SecretFinder;
}

/** `options`: BlockdevCreateOptions, checked. */
export function createJob(parts: CreateJobParts, options: Wire): JobWork {
  const driver = parts.drivers.find(({ name }) => name === options.driver);
  assert(driver?.creation !== undefined, "the schema lists drivers that make images");
  return new CreateWork(parts, driver.name, driver.creation, options);
}

class CreateWork implements JobWork {
  readonly type = "create";
  #parts: CreateJobParts;
  #driverName: string;
  #creation: ImageCreation;
  /** Without the driver and the nodes. */
  #options: Wire;
  /** By member. */
  #references: ReadonlyMap<string, string | Wire>;
  #uses = new Map<string, RootUse>();
  /** What was there is gone already. */
  #emptied: RootUse[] = [];
  #prepared: unknown;
  #cancel: () => void = () => {};

  constructor(parts: CreateJobParts, driver: string, creation: ImageCreation, options: Wire) {
    this.#parts = parts;
    this.#driverName = driver;
    this.#creation = creation;
    const { driver: _, ...members } = options;
    const roles = creation.nodes.map(({ role }) => role);
    const all = Object.entries(members);
    this.#options = Object.fromEntries(all.filter(([name]) => !roles.includes(name)));
    const given = roles.filter((role) => members[role] !== undefined);
    this.#references = new Map(given.map((role) => [role, members[role] as string | Wire]));
  }

  async run(job: Job): Promise<void> {
    const { graph } = this.#parts;
    job.setRemaining(1);
    try {
      await this.#prepare();
      await graph.exclusive(() => this.#attach(job));
      await this.#create(job);
    } catch (error) {
      await graph.exclusive(() => this.#empty(this.#emptied));
      throw error;
    } finally {
      await graph.exclusive(() => this.#detach());
      job.advance(1);
    }
  }

  cancel(): void {
    this.#cancel();
  }

  /** It may take long, and can't be stopped: nobody waits for its end once the job is cancelled. */
  async #prepare(): Promise<void> {
    const { promise, reject } = Promise.withResolvers<never>();
    this.#cancel = () => reject(canceled());
    const roles = [...this.#references.keys()];
    const made = this.#creation.prepare?.(this.#options, this.#parts.findSecret, roles);
    this.#prepared = await Promise.race([made, promise]);
    this.#cancel = () => {};
  }

  async #attach(job: Job): Promise<void> {
    // Nothing of what is there is lost yet.
    if (job.isCancelled) throw canceled();
    const { graph } = this.#parts;
    const plans = this.#creation.plan?.(this.#options, [...this.#references.keys()]) ?? {};
    let beside: RootUse | null = null;
    for (const [role, reference] of this.#references) {
      const use = await graph.attachReference(reference, TO_WRITE, beside?.child ?? null);
      this.#uses.set(role, use);
      beside ??= use;
      await graph.changeRoot(use, ALONE);
    }
    for (const [role, use] of this.#uses) await this.#setLength(use, plans[role]!);
  }

  async #setLength(use: RootUse, { bytes, keepsData }: TargetPlan): Promise<void> {
    if (!keepsData) {
      this.#emptied.push(use);
      await this.#empty([use]);
    }
    try {
      if (use.child.info.bytes < bytes) await this.#truncate(use, bytes);
    } catch (error) {
      if (!(error instanceof OutportError)) throw error;
      throw new OutportError(error.kind, `Could not resize image: ${error.message}`);
    }
  }

  /** So that nothing of what was there is left. What can't be shorter is overwritten later. */
  async #empty(uses: readonly RootUse[]): Promise<void> {
    for (const use of uses) {
      try {
        await this.#truncate(use, 0);
      } catch (error) {
        if (!(error instanceof OutportError)) throw error;
      }
    }
  }

  #truncate({ child: node }: RootUse, bytes: number): Promise<void> {
    return this.#parts.graph.drained([node], () => truncate(node, bytes));
  }

  async #create(job: Job): Promise<void> {
    if (job.isCancelled) throw canceled();
    const targets: Record<string, ImageCreate["targets"][string]> = {};
    for (const [role, { child }] of this.#uses) {
      targets[role] = { nodeName: child.nodeName, filename: imageFilename(child) };
    }
    const iothread = this.#iothread();
    const made = iothread.call("image-create", {
      jobId: job.id,
      driver: this.#driverName,
      options: this.#options,
      prepared: this.#prepared,
      targets,
      servedDevices: this.#parts.servedDevices(),
    });
    // A thread that has ended makes nothing any more.
    this.#cancel = () =>
      void iothread.call("image-create-cancel", { jobId: job.id }).catch(() => {});
    await made;
  }

  /** They can't move: nobody takes the job along. */
  #iothread(): Iothread {
    for (const use of this.#uses.values()) return use.child.iothread;
    return this.#parts.iothreads.get(MAIN_LOOP);
  }

  async #detach(): Promise<void> {
    const { graph } = this.#parts;
    for (const use of [...this.#uses.values()].reverse()) await graph.detachRoot(use);
  }
}

function canceled(): OutportError {
  return new OutportError("io", strerror(ECANCELED));
}
