import { describe, expect, test } from "bun:test";
import {
  type BlockNode,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "../../../src/block/node.ts";
import {
  checkParents,
  checkWriteLength,
  childUse,
  cumulate,
  NO_PERMISSIONS,
  nodeParent,
  type ParentUse,
  permissionNames,
  UNNAMED_BLOCK_DEVICE,
} from "../../../src/block/permissions.ts";

const node = { nodeName: "n0", writable: true };

function exported(used: number, shared: number): ParentUse {
  return { used, shared, parent: UNNAMED_BLOCK_DEVICE, role: "root" };
}

describe("permissionNames()", () => {
  test("names all bits in their order", () => {
    expect(permissionNames(PERM_ALL)).toBe("consistent read, write, write unchanged, resize");
    expect(permissionNames(PERM_RESIZE)).toBe("resize");
    expect(permissionNames(0)).toBe("");
  });
});

describe("cumulate()", () => {
  test("joins what is used and keeps what all share", () => {
    const both = cumulate([
      { used: PERM_WRITE, shared: PERM_ALL & ~PERM_RESIZE },
      { used: PERM_CONSISTENT_READ, shared: PERM_ALL & ~PERM_WRITE },
    ]);
    expect(both).toEqual({
      used: PERM_WRITE | PERM_CONSISTENT_READ,
      shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
    });
  });

  test("asks for nothing without parents", () => {
    expect(cumulate([])).toEqual(NO_PERMISSIONS);
  });
});

describe("checkParents()", () => {
  test("lets two exports share a node", () => {
    const one = exported(PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL & ~PERM_RESIZE);
    expect(checkParents(node, [one, { ...one }])).toEqual({ used: one.used, shared: one.shared });
  });

  test("says who needs what and who keeps it", () => {
    const fuse = exported(PERM_CONSISTENT_READ | PERM_RESIZE, PERM_ALL);
    const nbd = exported(PERM_CONSISTENT_READ, PERM_ALL & ~PERM_RESIZE);
    expect(() => checkParents(node, [nbd, fuse])).toThrow(
      "Permission conflict on node 'n0': permissions 'resize' are both required by an unnamed " +
        "block device (uses node 'n0' as 'root' child) and unshared by an unnamed block device " +
        "(uses node 'n0' as 'root' child).",
    );
  });

  test("names a node that is in the way", () => {
    const overlay = {
      used: 0,
      shared: PERM_CONSISTENT_READ,
      parent: nodeParent("top"),
      role: "file",
    };
    const writer = exported(PERM_WRITE, PERM_ALL);
    expect(() => checkParents(node, [overlay, writer])).toThrow(
      "'write' are both required by an unnamed block device (uses node 'n0' as 'root' child) and " +
        "unshared by node 'top' (uses node 'n0' as 'file' child).",
    );
  });

  test("lets a parent keep from others what it uses itself", () => {
    const only = exported(PERM_WRITE, 0);
    expect(checkParents(node, [only])).toEqual({ used: PERM_WRITE, shared: 0 });
  });

  test("refuses writers of a read-only node", () => {
    const readOnly = { nodeName: "n0", writable: false };
    expect(() => checkParents(readOnly, [exported(PERM_WRITE, PERM_ALL)])).toThrow(
      "Block node is read-only",
    );
    expect(checkParents(readOnly, [exported(PERM_CONSISTENT_READ, PERM_ALL)]).used).toBe(
      PERM_CONSISTENT_READ,
    );
  });
});

describe("checkWriteLength()", () => {
  const [aligned, cut] = [8192, 8192 + 512].map((bytes) => {
    return { bytes, limits: { requestAlignment: 4096 } } as BlockNode;
  });

  test("refuses writers of a node that ends within a block, unless they may resize it", () => {
    expect(() => checkWriteLength(cut!, PERM_WRITE)).toThrow("Cannot get 'write' permission");
    expect(() => checkWriteLength(cut!, PERM_WRITE | PERM_RESIZE)).not.toThrow();
    expect(() => checkWriteLength(cut!, PERM_CONSISTENT_READ)).not.toThrow();
    expect(() => checkWriteLength(aligned!, PERM_WRITE)).not.toThrow();
  });
});

describe("childUse()", () => {
  test("keeps nothing from others on a child with force-share", () => {
    const asked = { used: PERM_CONSISTENT_READ, shared: PERM_CONSISTENT_READ };
    expect(childUse(asked, false)).toEqual(asked);
    expect(childUse(asked, true)).toEqual({ used: PERM_CONSISTENT_READ, shared: PERM_ALL });
  });
});
