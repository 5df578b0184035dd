/** Tells of images that turn out to be damaged. Thread: main. Spec: BLOCK_IMAGE_CORRUPTED */
import type { Iothreads } from "../iothread/pool.ts";

/** Data of BLOCK_IMAGE_CORRUPTED. */
export interface BlockImageCorrupted {
  readonly device: string;
  readonly "node-name"?: string;
  readonly msg: string;
  readonly offset?: number;
  readonly size?: number;
  readonly fatal: boolean;
}

export function announceCorruption(
  iothreads: Iothreads,
  emit: (event: "BLOCK_IMAGE_CORRUPTED", data: BlockImageCorrupted) => void,
): void {
  iothreads.onEvent((_iothread, event) => {
    if (event.event !== "image-corrupted") return;
    const { nodeName, message, fatal, offset, bytes } = event;
    emit("BLOCK_IMAGE_CORRUPTED", {
      device: "",
      // Names that were generated are nobody's business.
      ...(nodeName.startsWith("#") ? {} : { "node-name": nodeName }),
      msg: message,
      ...(offset === undefined ? {} : { offset }),
      ...(bytes === undefined ? {} : { size: bytes }),
      fatal,
    });
  });
}
