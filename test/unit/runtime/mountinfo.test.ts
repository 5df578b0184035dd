import { describe, expect, test } from "bun:test";
import { parseMountinfo } from "../../../src/runtime/mountinfo.ts";

describe("parseMountinfo()", () => {
  test("reads lines with and without optional fields", () => {
    const text = [
      "47 27 0:42 / /run/disk ro,nosuid - fuse /dev/fuse ro,user_id=0,group_id=0",
      "28 1 254:1 /part /mnt rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw",
      "",
    ].join("\n");
    expect(parseMountinfo(text)).toEqual([
      {
        ...{ id: 47, dev: 42, root: "/", path: "/run/disk", type: "fuse", source: "/dev/fuse" },
        options: ["ro", "user_id=0", "group_id=0"],
      },
      {
        ...{ id: 28, dev: 254 * 2 ** 20 + 1, root: "/part", path: "/mnt", type: "ext4" },
        ...{ source: "/dev/vda1", options: ["rw"] },
      },
    ]);
  });

  test("undoes the escapes of blanks, newlines and backslashes", () => {
    const [mount] = parseMountinfo(
      "1 0 0:1 / /a\\040b\\011c\\012d\\134e\\043 rw - t\\040u s\\134 -",
    );
    expect(mount?.path).toBe("/a b\tc\nd\\e#");
    expect(mount?.type).toBe("t u");
    expect(mount?.source).toBe("s\\");
  });

  test("keeps what is beyond ASCII, and what only looks like an escape", () => {
    const [mount] = parseMountinfo("1 0 0:1 / /dïsk\\9\\04 rw - fuse x rw");
    expect(mount?.path).toBe("/dïsk\\9\\04");
  });

  test("leaves out lines that make no sense", () => {
    const lines = [
      "x 0 0:1 / / rw - t s o",
      "1 0 0 / / rw - t s o",
      "1 0 0:1 / / rw t s o",
      "1 0 0:1 / / rw - t s",
      "1 0 99999:1 / / rw - t s o",
      "99999999999 0 0:1 / / rw - t s o",
    ];
    expect(parseMountinfo(lines.join("\n"))).toEqual([]);
  });
});
