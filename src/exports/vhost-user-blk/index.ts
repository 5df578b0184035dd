/**
 * The export type vhost-user-blk as main sees it: what its options may be, and where the export
 * listens. All else happens on the iothread of its node. Thread: main.
 * Spec: qapi/block-export.json BlockExportOptionsVhostUserBlk
 */
import { planListen } from "../../io/listen-plan.ts";
import { doc, optional, size, str, uint16 } from "../../qapi/scalars.ts";
import { type SocketAddress, socketAddress } from "../../qapi/sockets.ts";
import { assert, OutportError } from "../../util/error.ts";
import type { BlockExport, ExportType } from "../export.ts";
import { HostedExports } from "../hosted.ts";
import type { VhostUserBlkOptions } from "./service.ts";

const members = {
  addr: doc(socketAddress, "Address to listen on: unix or fd"),
  "logical-block-size": optional(
    size,
    "Logical block size in bytes, a power of two from 512 on (default: 512)",
  ),
  "num-queues": optional(uint16, "Number of request virtqueues, at most 1024 (default: 1)"),
  // QSD differs: it says "vhost_user_blk" of every disk.
  serial: optional(str, 'Serial number of the disk, up to 20 bytes (default: "vhost_user_blk")'),
};

interface Options {
  readonly addr: SocketAddress;
  readonly "logical-block-size"?: number;
  readonly "num-queues"?: number;
  readonly serial?: string;
}

const BLOCK_BYTES_MIN = 512;
const BLOCK_BYTES_MAX = 2 * 1024 * 1024;
const QUEUES_MAX = 1024;
const SERIAL_BYTES_MAX = 20;
const SERIAL_DEFAULT = "vhost_user_blk";

export function vhostUserBlkExportType(): ExportType {
  const hosted = new HostedExports("vhost-user-blk");
  return {
    name: "vhost-user-blk",
    members,
    allowsInactive: false,
    async create(exp) {
      await hosted.open(exp, { ...(await checkOptions(exp)) });
    },
    requestShutdown: async (exp, safe) => (await hosted.requestShutdown(exp, safe)).clientCount,
    delete: (exp) => hosted.close(exp),
    suspend: (exp) => hosted.suspend(exp),
    resume: (exp) => hosted.resume(exp),
  };
}

/** In QSD's order. */
async function checkOptions(exp: BlockExport): Promise<VhostUserBlkOptions> {
  const options = exp.options as unknown as Options;
  // QSD differs: it takes 0 as it is, and the first read of a guest divides by it.
  const blockBytes = options["logical-block-size"] || BLOCK_BYTES_MIN;
  if (!isBlockBytes(blockBytes)) {
    const range = `${BLOCK_BYTES_MIN} and ${BLOCK_BYTES_MAX}`;
    const text = `parameter logical-block-size must be a power of 2 between ${range}`;
    throw new OutportError("invalid", text);
  }
  const queueCount = options["num-queues"] ?? 1;
  if (queueCount === 0) throw new OutportError("invalid", "num-queues must be greater than 0");
  // QSD differs: it takes up to 65535, of which no front-end can use more.
  if (queueCount > QUEUES_MAX) {
    throw new OutportError("invalid", `num-queues must be at most ${QUEUES_MAX}`);
  }
  const { serial = SERIAL_DEFAULT } = options;
  if (new TextEncoder().encode(serial).length > SERIAL_BYTES_MAX) {
    throw new OutportError("invalid", `serial must be at most ${SERIAL_BYTES_MAX} bytes`);
  }
  if (exp.multiThreaded) {
    const text = "vhost-user-blk export does not support multi-threading";
    throw new OutportError("unsupported", text);
  }
  const { addr } = options;
  if (addr.type !== "unix" && addr.type !== "fd") {
    const text = "Only socket address types 'unix' and 'fd' are supported";
    throw new OutportError("unsupported", text);
  }
  // Neither kind has names to look up.
  const { choices } = await planListen(addr, async () => [], exp.fdNumbers);
  const address = choices[0]?.[0];
  assert(address !== undefined, "a unix socket has one address");
  return { address, blockBytes, queueCount, serial };
}

function isBlockBytes(bytes: number): boolean {
  return bytes >= BLOCK_BYTES_MIN && bytes <= BLOCK_BYTES_MAX && (bytes & (bytes - 1)) === 0;
}
