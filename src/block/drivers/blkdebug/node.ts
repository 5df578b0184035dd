/** The node of blkdebug: what its rules let through goes to the image. Thread: iothread. */
import type { NodeDescription } from "../../../iothread/messages.ts";
import { ENOTSUP } from "../../../runtime/errno.ts";
import type { OpenContext } from "../../driver.ts";
import { FilterNode } from "../../filter-node.ts";
import {
  type BlockLimits,
  type BlockStatus,
  OP_DISCARD,
  type Op,
  type ReopenedNode,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "../../node.ts";
import type { BlkdebugEvent, BlkdebugIoType, BlkdebugOptions, Rules, RulesState } from "./rules.ts";

/** Options and the members of BlockLimitsInfo that show them. */
const LIMITS = [
  ["align", "request-alignment"],
  ["max-transfer", "max-transfer"],
  ["opt-write-zero", "write-zeroes-alignment"],
  ["max-write-zero", "max-write-zeroes"],
  ["opt-discard", "discard-alignment"],
  ["max-discard", "max-discard"],
] as const;

/** Lengths of the requests that reach the image; longer ones are split, shorter ones refused. */
export interface ZeroLimits {
  readonly writeZeroesMin: number;
  readonly writeZeroesMax: number;
  readonly discardMax: number;
}

export interface BlkdebugParts {
  readonly limits: BlockLimits;
  readonly zeroes: ZeroLimits;
  readonly rules: Rules;
}

export class BlkdebugNode extends FilterNode {
  #limits: BlockLimits;
  #zeroes: ZeroLimits;
  #rules: Rules;

  constructor(context: OpenContext, { limits, zeroes, rules }: BlkdebugParts) {
    super("blkdebug", context, "image");
    this.#limits = limits;
    this.#zeroes = zeroes;
    this.#rules = rules;
  }

  override get limits(): BlockLimits {
    return this.#limits;
  }

  /** Every request meets the rules. */
  override resolve(op: Op): ResolutionKind {
    return op === OP_DISCARD && !this.context.discardUnmap ? ZERO : SLOW;
  }

  onBlockEvent(event: BlkdebugEvent): void {
    this.#rules.onEvent(event);
  }

  override async read(offset: number, bytes: number, address: number): Promise<number> {
    const fault = await this.#meetRules("read", offset, bytes);
    return fault || super.read(offset, bytes, address);
  }

  protected override async writeData(
    offset: number,
    bytes: number,
    address: number,
    flags: number,
  ): Promise<number> {
    this.#rules.onEvent("pwritev");
    const fault = await this.#meetRules("write", offset, bytes);
    const result = fault || (await super.writeData(offset, bytes, address, flags));
    this.#rules.onEvent("pwritev_done");
    return result;
  }

  override async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const { writeZeroesMin, writeZeroesMax } = this.#zeroes;
    if (offset % writeZeroesMin !== 0 || bytes % writeZeroesMin !== 0) return -ENOTSUP;
    this.#rules.onEvent("pwritev_zero");
    const result = await inParts(offset, bytes, writeZeroesMax, async (at, length) => {
      const fault = await this.#meetRules("write-zeroes", at, length);
      return fault || super.writeZeroes(at, length, flags);
    });
    this.#rules.onEvent("pwritev_done");
    return result;
  }

  override discard(offset: number, bytes: number): Promise<number> {
    return inParts(offset, bytes, this.#zeroes.discardMax, async (at, length) => {
      const fault = await this.#meetRules("discard", at, length);
      return fault || super.discard(at, length);
    });
  }

  override async flush(): Promise<number> {
    const fault = await this.#meetRules("flush", 0, 0);
    return fault || super.flush();
  }

  override async blockStatus(offset: number, bytes: number, out: BlockStatus): Promise<number> {
    const fault = await this.#meetRules("block-status", offset, bytes);
    return fault || super.blockStatus(offset, bytes, out);
  }

  override isKnownData(): boolean {
    return false;
  }

  override describe(): NodeDescription {
    const options = this.context.options as BlkdebugOptions;
    const limits: Record<string, number> = {};
    for (const [option, limit] of LIMITS) {
      if (options[option]) limits[limit] = options[option];
    }
    return { limits };
  }

  /** Only what all nodes have in common may change. */
  override async reopen(context: OpenContext): Promise<ReopenedNode> {
    const before = this.context;
    this.use(context);
    return { commit: () => {}, undo: () => this.use(before) };
  }

  handOver(): RulesState {
    return this.#rules.save();
  }

  /** 0 or -errno, after the delay that the rules want. */
  async #meetRules(ioType: BlkdebugIoType, offset: number, bytes: number): Promise<number> {
    const fault = this.#rules.faultOf(ioType, offset, bytes);
    if (fault === null) return 0;
    if (fault.delayNs > 0) await this.context.reactor.sleep(fault.delayNs);
    return fault.result;
  }
}

/** Ends with the first part that fails. */
async function inParts(
  offset: number,
  bytes: number,
  partMax: number,
  part: (offset: number, bytes: number) => Promise<number>,
): Promise<number> {
  for (let done = 0; done < bytes; done += partMax) {
    const result = await part(offset + done, Math.min(bytes - done, partMax));
    if (result < 0) return result;
  }
  return 0;
}
