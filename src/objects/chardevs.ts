/**
 * Character devices as objects: what /chardevs shows of them. Thread: main.
 * Spec: QEMU chardev/char.c, char-socket.c
 */
import type { Chardev } from "../chardev/chardev.ts";
import { SocketChardev } from "../chardev/socket.ts";
import { assert } from "../util/error.ts";
import type { QomObject, QomType } from "./registry.ts";

const chardev: QomType = { name: "chardev", abstract: true, properties: [] };
const chardevFd: QomType = {
  name: "chardev-fd",
  parent: chardev,
  abstract: true,
  properties: [],
};
const chardevSocket: QomType = {
  name: "chardev-socket",
  parent: chardev,
  properties: [
    { name: "connected", type: "bool" },
    { name: "addr", type: "SocketAddress" },
  ],
};

export const chardevTypes: readonly QomType[] = [
  chardevSocket,
  { name: "chardev-null", parent: chardev, properties: [] },
  ...["stdio", "file", "pipe"].map((kind) => ({
    name: `chardev-${kind}`,
    parent: chardevFd,
    properties: [],
  })),
];

export function* chardevObjects(
  devices: Iterable<Chardev>,
): Generator<readonly [string, QomObject]> {
  for (const device of devices) yield [device.id, objectOf(device)];
}

function objectOf(device: Chardev): QomObject {
  if (device instanceof SocketChardev) {
    const get = (property: string) =>
      property === "connected" ? device.stream !== undefined : device.address;
    return { type: chardevSocket, get };
  }
  // All others are called by their kind.
  const type = chardevTypes.find(({ name }) => name === `chardev-${device.filename}`);
  assert(type !== undefined, `there is a type for the device ${device.filename}`);
  return { type, get: () => undefined };
}
