/** Character devices in /chardevs. Replies are those of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import { ServerChardev } from "../../../src/chardev/socket.ts";
import { nullStream, StreamChardev } from "../../../src/chardev/streams.ts";
import { chardevObjects, chardevTypes } from "../../../src/objects/chardevs.ts";
import { QomTree } from "../../../src/objects/qom.ts";

const address = { type: "unix", path: "/tmp/s" } as const;

describe("/chardevs", () => {
  test("shows devices by kind, and what a socket is connected to", () => {
    const devices = [
      ...["null", "stdio", "file", "pipe"].map(
        (kind) => new StreamChardev(kind, kind, nullStream()),
      ),
      new ServerChardev("s", { address, listeners: [], removeFiles: () => {}, wait: false }),
    ];
    const tree = new QomTree({
      kinds: [],
      types: chardevTypes,
      objects: () => [],
      chardevs: () => chardevObjects(devices),
    });
    expect(tree.list("/chardevs").map(({ type }) => type)).toEqual([
      "string",
      ...["null", "stdio", "file", "pipe", "socket"].map((kind) => `child<chardev-${kind}>`),
    ]);
    expect(tree.listGet("s")).toEqual([
      { name: "type", type: "string", value: "chardev-socket" },
      { name: "connected", type: "bool", value: false },
      { name: "addr", type: "SocketAddress", value: address },
    ]);
    expect(tree.listTypes("chardev", true)).toEqual([
      { name: "chardev-socket", parent: "chardev" },
      { abstract: true, name: "chardev", parent: "object" },
      { name: "chardev-null", parent: "chardev" },
      { name: "chardev-stdio", parent: "chardev-fd" },
      { abstract: true, name: "chardev-fd", parent: "chardev" },
      { name: "chardev-file", parent: "chardev-fd" },
      { name: "chardev-pipe", parent: "chardev-fd" },
    ]);
  });
});
