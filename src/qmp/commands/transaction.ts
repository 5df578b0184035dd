/** Several changes at once. Thread: main. Spec: qapi/transaction.json */
import type { GenericSchema } from "valibot";
import type { BitmapChange } from "../../bitmaps/bitmaps.ts";
import type { SnapshotAction } from "../../block/snapshots.ts";
import { abortStep, type Step } from "../../block/transactions.ts";
import {
  blockDirtyBitmap,
  blockDirtyBitmapAdd,
  blockDirtyBitmapMerge,
} from "../../qapi/bitmaps.ts";
import { defineCommand } from "../../qapi/define.ts";
import { arrayOf, doc, enumeration, nothing, object, optional, union } from "../../qapi/scalars.ts";
import {
  blockdevSnapshot,
  blockdevSnapshotInternal,
  blockdevSnapshotSync,
} from "../../qapi/snapshots.ts";
import type { AnyCommand } from "../../qapi/types.ts";
import { OutportError } from "../../util/error.ts";
import type { SnapshotParts } from "./snapshots.ts";

export interface TransactionParts {
  /** All of them or none, with no request in flight on any node. */
  readonly runSteps: (steps: readonly Step[]) => Promise<void>;
  readonly bitmapStep: (change: BitmapChange) => Step;
  readonly snapshots: SnapshotParts["snapshots"];
}

/** What a transaction can do: the schema of its data, and how it is done. */
interface Action {
  readonly data: GenericSchema;
  step(parts: TransactionParts, data: never): Step;
}

const bitmapAction = (type: BitmapChange["type"], data: GenericSchema): Action => ({
  data,
  step: ({ bitmapStep }, given) => bitmapStep({ type, data: given }),
});

const snapshotAction = (type: SnapshotAction["type"], data: GenericSchema): Action => ({
  data,
  step: ({ snapshots }, given) => snapshots.step({ type, data: given }),
});

const ACTIONS = {
  abort: { data: object("Abort", {}), step: () => abortStep },
  "block-dirty-bitmap-add": bitmapAction("add", blockDirtyBitmapAdd),
  "block-dirty-bitmap-remove": bitmapAction("remove", blockDirtyBitmap),
  "block-dirty-bitmap-clear": bitmapAction("clear", blockDirtyBitmap),
  "block-dirty-bitmap-enable": bitmapAction("enable", blockDirtyBitmap),
  "block-dirty-bitmap-disable": bitmapAction("disable", blockDirtyBitmap),
  "block-dirty-bitmap-merge": bitmapAction("merge", blockDirtyBitmapMerge),
  "blockdev-snapshot": snapshotAction("blockdev-snapshot", blockdevSnapshot),
  "blockdev-snapshot-internal-sync": snapshotAction(
    "blockdev-snapshot-internal-sync",
    blockdevSnapshotInternal,
  ),
  "blockdev-snapshot-sync": snapshotAction("blockdev-snapshot-sync", blockdevSnapshotSync),
} as const satisfies Record<string, Action>;

type ActionType = keyof typeof ACTIONS;

const transactionAction = union("TransactionAction", {
  base: {
    type: doc(
      enumeration("TransactionActionKind", Object.keys(ACTIONS) as ActionType[]),
      "What is done",
    ),
  },
  tag: "type",
  branches: Object.fromEntries(
    Object.entries(ACTIONS).map(([type, { data }]) => [type, { data: doc(data, "With what") }]),
  ),
});

export function transactionCommands(parts: TransactionParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "transaction",
      documentation: "Carries out several actions in their order: all of them, or none.",
      errors: ["An action fails", "An action can't take part in a group"],
      arguments: object("q_obj_transaction-arg", {
        actions: doc(arrayOf(transactionAction), "What is to be done"),
        properties: optional(
          object("TransactionProperties", {
            "completion-mode": optional(
              enumeration("ActionCompletionMode", ["individual", "grouped"]),
              "Whether jobs that the actions start end together (default: individual)",
            ),
          }),
          "How the actions belong together",
        ),
      }),
      returns: nothing,
      async handler({ actions, properties }) {
        const grouped = properties?.["completion-mode"] === "grouped";
        await parts.runSteps(
          actions.map((given) => {
            const { type, data } = given as { type: ActionType; data: never };
            const action: Action = ACTIONS[type];
            return grouped ? refuseGroup(type) : action.step(parts, data);
          }),
        );
        return {};
      },
    }),
  ];
}

/** Only jobs can end together. */
function refuseGroup(type: string): Step {
  return () => {
    const property = "transaction property completion-mode = grouped";
    throw new OutportError("unsupported", `Action '${type}' does not support ${property}`);
  };
}
