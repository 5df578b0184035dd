/** Replays the corpus: each lie is refused, noticed or harmless, in the words that it must be. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { closeSync, openSync, readSync, writeFileSync } from "node:fs";
import * as abi from "../../../src/abi/qcow2.ts";
import {
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_MAY_UNMAP,
} from "../../../src/block/node.ts";
import { EIO, ENOMEDIUM, ENOSPC } from "../../../src/runtime/errno.ts";
import { OutportError } from "../../../src/util/error.ts";
import { Payload } from "../../support/block.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../../support/images.ts";
import { type OpenedImage, openQcow2 } from "../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";
import { type Lie, soundImage } from "./make.ts";
import { lies } from "./qcow2.ts";

const CLUSTER = 65536;
const reactor = makeReactor("epoll");
const payload = new Payload(reactor, CLUSTER);
const sound = soundImage();
let folder: TemporaryDirectory;

beforeAll(async () => {
  folder = await temporaryDirectory();
});

afterAll(async () => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
  await folder[Symbol.asyncDispose]();
});

/** Over data, beside it, and where there is nothing. */
const REQUESTS: readonly (readonly [op: Op, offset: number, bytes: number])[] = [
  [OP_READ, 0, CLUSTER],
  [OP_READ, 4 * CLUSTER, CLUSTER],
  [OP_WRITE, CLUSTER, 512],
  [OP_WRITE, 0, 4096],
  [OP_WRITE, 40 * CLUSTER, CLUSTER],
  [OP_WRITE_ZEROES, 5 * CLUSTER, CLUSTER],
  [OP_DISCARD, 9 * CLUSTER, CLUSTER],
  [OP_WRITE, 41 * CLUSTER, 512],
  [OP_FLUSH, 0, 0],
];

const ERRORS: Readonly<Record<number, string>> = {
  [EIO]: "-EIO",
  [ENOMEDIUM]: "-ENOMEDIUM",
  [ENOSPC]: "-ENOSPC",
};

async function use(image: OpenedImage): Promise<string> {
  const failures = new Set<string>();
  const end = image.node.bytes;
  for (const [op, offset, bytes] of REQUESTS) {
    if (offset + bytes > end) continue;
    const flags = op === OP_WRITE_ZEROES ? REQ_MAY_UNMAP : 0;
    const { address } = payload;
    const result = await runOn(reactor, () =>
      image.backend.request(op, offset, bytes, address, flags),
    );
    if (result < 0) failures.add(ERRORS[-result] ?? `${result}`);
  }
  const [event, ...more] = image.events;
  expect(more).toEqual([]);
  if (event?.event === "image-corrupted") return `corrupt: ${event.message}`;
  return [...failures].join(", ");
}

/** What the driver never changes. */
function fixedFields(path: string): Uint8Array {
  const fields = new Uint8Array(abi.HEADER_CRYPT_METHOD);
  const fd = openSync(path, "r");
  readSync(fd, fields, 0, fields.length, 0);
  closeSync(fd);
  return fields;
}

async function outcomeOf({ change }: Lie): Promise<string> {
  const path = folder.file("image.qcow2");
  writeFileSync(path, change(sound.slice()));
  const before = fixedFields(path);
  let image: OpenedImage;
  try {
    image = await openQcow2(reactor, { path });
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    return `refused: ${error.message.replace(path, "PATH")}`;
  }
  const outcome = await use(image);
  await image.close();
  expect(fixedFields(path)).toEqual(before);
  return outcome;
}

describe("qcow2 images that lie:", () => {
  for (const lie of lies) {
    test(lie.name, async () => {
      expect(await outcomeOf(lie)).toBe(lie.outcome);
    });
  }
});
