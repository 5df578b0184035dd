/** The first cluster of a sound qcow2 image, for tests to change. */
import * as abi from "../../src/abi/qcow2.ts";

/** Version 3, 64 KiB clusters, 64 MiB: tables at 64, 128 and 192 KiB, as qemu-img lays them out. */
export function headerCluster(): Uint8Array {
  const cluster = new Uint8Array(65536);
  const view = new DataView(cluster.buffer);
  view.setUint32(abi.HEADER_MAGIC, abi.QCOW_MAGIC);
  view.setUint32(abi.HEADER_VERSION, 3);
  view.setUint32(abi.HEADER_CLUSTER_BITS, 16);
  view.setUint32(abi.HEADER_SIZE + 4, 64 * 1024 * 1024);
  view.setUint32(abi.HEADER_L1_SIZE, 1);
  view.setUint32(abi.HEADER_L1_TABLE_OFFSET + 4, 0x30000);
  view.setUint32(abi.HEADER_REFCOUNT_TABLE_OFFSET + 4, 0x10000);
  view.setUint32(abi.HEADER_REFCOUNT_TABLE_CLUSTERS, 1);
  view.setUint32(abi.HEADER_REFCOUNT_ORDER, 4);
  view.setUint32(abi.HEADER_HEADER_LENGTH, abi.HEADER_LENGTH_KNOWN);
  return cluster;
}

/** With its tables: empty, and sound. `refcountOrder` and the like stay as they are. */
export function emptyImage(): Uint8Array {
  const image = new Uint8Array(4 * 65536);
  image.set(headerCluster());
  const view = new DataView(image.buffer);
  view.setUint32(0x10000 + 4, 0x20000);
  for (let cluster = 0; cluster < 4; cluster++) view.setUint16(0x20000 + cluster * 2, 1);
  return image;
}
