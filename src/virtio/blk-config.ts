/**
 * What a virtio block device tells its driver: features and configuration space.
 * Thread: iothread. Spec: VIRTIO 1.3 §5.2.3 "Feature bits", §5.2.4 "Device configuration layout"
 */
import * as blk from "../abi/virtio-blk.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from "../abi/virtio-ring.ts";

/** Pieces of one request, with header and status at most 128. */
export const SEG_MAX = 126;
/**
 * QSD differs: it takes 16 MiB at most, and a guest that trims a large disk sends thousands of
 * requests.
 */
export const RANGE_SECTORS_MAX = Math.floor(0x7fff_ffff / blk.VIRTIO_BLK_SECTOR_BYTES);

export interface BlkConfigOptions {
  readonly queueCount: number;
  /** A power of two from 512 on. */
  readonly blockBytes: number;
  readonly writable: boolean;
}

/** Those of the device; a transport adds its own. */
export function offeredFeatures({ queueCount, writable }: BlkConfigOptions): bigint {
  const bits = [
    VIRTIO_F_VERSION_1,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_RING_PACKED,
    blk.VIRTIO_BLK_F_SEG_MAX,
    blk.VIRTIO_BLK_F_BLK_SIZE,
    blk.VIRTIO_BLK_F_TOPOLOGY,
    blk.VIRTIO_BLK_F_FLUSH,
    blk.VIRTIO_BLK_F_CONFIG_WCE,
    blk.VIRTIO_BLK_F_DISCARD,
    blk.VIRTIO_BLK_F_WRITE_ZEROES,
  ];
  if (queueCount > 1) bits.push(blk.VIRTIO_BLK_F_MQ);
  if (!writable) bits.push(blk.VIRTIO_BLK_F_RO);
  return bits.reduce((all, bit) => all | (1n << BigInt(bit)), 0n);
}

/** The configuration space, VIRTIO_BLK_CONFIG_SIZE bytes. */
export function configSpace(
  { queueCount, blockBytes }: BlkConfigOptions,
  diskBytes: number,
  writeCache: boolean,
): Uint8Array {
  const bytes = new Uint8Array(blk.VIRTIO_BLK_CONFIG_SIZE);
  const view = new DataView(bytes.buffer);
  const sectors = Math.floor(diskBytes / blk.VIRTIO_BLK_SECTOR_BYTES);
  view.setBigUint64(blk.VIRTIO_BLK_CONFIG_CAPACITY, BigInt(sectors), true);
  view.setUint32(blk.VIRTIO_BLK_CONFIG_SEG_MAX, SEG_MAX, true);
  view.setUint32(blk.VIRTIO_BLK_CONFIG_BLK_SIZE, blockBytes, true);
  // QSD differs: it says 0, and a guest that believes it never flushes.
  bytes[blk.VIRTIO_BLK_CONFIG_WCE] = writeCache ? 1 : 0;
  view.setUint16(blk.VIRTIO_BLK_CONFIG_NUM_QUEUES, queueCount, true);
  view.setUint32(blk.VIRTIO_BLK_CONFIG_MAX_DISCARD_SECTORS, RANGE_SECTORS_MAX, true);
  view.setUint32(blk.VIRTIO_BLK_CONFIG_MAX_DISCARD_SEG, 1, true);
  const blockSectors = blockBytes / blk.VIRTIO_BLK_SECTOR_BYTES;
  view.setUint32(blk.VIRTIO_BLK_CONFIG_DISCARD_SECTOR_ALIGNMENT, blockSectors, true);
  view.setUint32(blk.VIRTIO_BLK_CONFIG_MAX_WRITE_ZEROES_SECTORS, RANGE_SECTORS_MAX, true);
  view.setUint32(blk.VIRTIO_BLK_CONFIG_MAX_WRITE_ZEROES_SEG, 1, true);
  // QSD differs: it says 0 and unmaps all the same when it is asked to.
  bytes[blk.VIRTIO_BLK_CONFIG_WRITE_ZEROES_MAY_UNMAP] = 1;
  return bytes;
}
