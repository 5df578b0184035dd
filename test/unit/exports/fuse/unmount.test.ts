import { beforeEach, describe, expect, test } from "bun:test";
import {
  type FuseMount,
  type MountRequest,
  mountOver,
} from "../../../../src/exports/fuse/mount.ts";
import type { StillOpen } from "../../../../src/exports/fuse/service.ts";
import { abortMount, find, leave, unmount } from "../../../../src/exports/fuse/unmount.ts";
import { EINVAL, EIO, EPERM } from "../../../../src/runtime/errno.ts";
import { FakeMounts } from "../../../support/fake-mounts.ts";

let system: FakeMounts;
let logged: string[];

beforeEach(() => {
  system = new FakeMounts("/a");
  logged = [];
});

const log = (level: string, text: string) => void logged.push(`${level}: ${text}`);
const mount = (more: Partial<MountRequest> = {}) =>
  mountOver(
    system,
    { ...{ path: "/a", writable: true, allowOther: "auto", isOwn: () => false }, ...more },
    log,
  );

async function end(mount: FuseMount, stillOpen: StillOpen = "nothing"): Promise<void> {
  await unmount({ system, mount, found: await find(system, mount), stillOpen, log });
}

describe("unmount()", () => {
  test("has written back what mappings changed before, if they may", async () => {
    const made = await mount();
    await end(made, "mappings");
    expect(system.log.slice(1)).toEqual(["sync /a", "unmount /a"]);
    const readOnly = await mount({ writable: false });
    await end(readOnly, "nothing");
    expect(system.log.slice(4)).toEqual(["unmount /a"]);
    expect(system.mounted).toEqual([]);
    expect([...system.open.values()]).toEqual(["/dev/fuse", "/dev/fuse"]);
  });

  test("takes the image away from who has it directly, then needs no attributes", async () => {
    const made = await mount();
    system.syncFailure = "sync: error opening '/a': Input/output error";
    const { identify } = system;
    const found = await find(system, made);
    system.identify = () => -EIO;
    await unmount({ system, mount: made, found, stillOpen: "direct", log });
    expect(system.log.slice(1)).toEqual(["sync /a", "unmount /a"]);
    expect(logged).toEqual([]);
    system.identify = identify;
    expect(system.mounted).toEqual([]);
  });

  test("says when it can't take the image away", async () => {
    const goesOn =
      "warn: Programs that have '/a' open may go on reading and writing the image itself";
    const made = await mount();
    await end(made, "direct");
    expect(logged).toEqual([goesOn]);
    expect(system.mounted).toEqual([]);
    await end(made, "direct");
    expect(logged).toEqual([goesOn, goesOn]);
  });

  test("finds the mount where it is by now", async () => {
    const made = await mount();
    const { id, dev } = system.mounted[0]!;
    system.mounted.length = 0;
    system.files.set("/moved", 0o100644);
    system.mountBy("/moved", { id, dev });
    await end(made, "mappings");
    expect(system.log).toContain("unmount /moved");
    expect(system.mounted).toEqual([]);
  });

  test("has nothing to do when somebody else has unmounted it", async () => {
    const made = await mount();
    system.unmountBy("/a");
    system.mountBy("/a");
    await end(made, "mappings");
    expect(system.mounted).toHaveLength(1);
    expect(system.log).toHaveLength(1);
    expect(logged).toEqual([]);
  });

  test("has nothing to say when somebody else is quicker", async () => {
    const made = await mount();
    system.unmount = async () => {
      system.unmountBy("/a");
      return -EINVAL;
    };
    await end(made, "mappings");
    expect(logged).toEqual([]);
  });

  test("does not take away what is mounted above", async () => {
    const made = await mount();
    system.mountBy("/a", { type: "ext4" });
    await end(made, "mappings");
    expect(system.mounted).toHaveLength(2);
    expect(logged).toEqual(["error: Cannot unmount '/a': it is under another mount"]);
    expect([...system.open.values()]).toEqual(["/dev/fuse"]);
  });

  test("leaves a mount that stays", async () => {
    const made = await mount();
    await leave(system, await find(system, made));
    expect(system.mounted).toHaveLength(1);
    expect([...system.open.values()]).toEqual(["/dev/fuse"]);
    await leave(system, undefined);
  });

  test("asks fusermount3 as an ordinary user, and says what fails", async () => {
    const made = await mount();
    system.unmountResult = -EPERM;
    system.fusermountFailure = () => ({ stderr: "fusermount3: no\n" });
    system.syncFailure = "sync: no\n";
    await end(made, "mappings");
    expect(logged).toEqual([
      "warn: Mappings of '/a' may not be written back: sync: no",
      "error: Cannot unmount '/a': fusermount3: no",
    ]);
    system.fusermountFailure = () => undefined;
    await end(made, "mappings");
    expect(system.mounted).toEqual([]);
  });
});

describe("abortMount()", () => {
  test("goes where the mount is by now", async () => {
    const made = await mount();
    const { id, dev } = system.mounted[0]!;
    system.mounted.length = 0;
    system.mountBy("/moved", { id, dev });
    abortMount(system, made);
    expect(system.mounted).toEqual([]);
    abortMount(system, made);
    expect(system.log.slice(-2)).toEqual(["abort /moved", "abort /a"]);
  });
});
