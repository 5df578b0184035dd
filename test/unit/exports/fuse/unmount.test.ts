import { beforeEach, describe, expect, test } from "bun:test";
import { type MountRequest, mountOver } from "../../../../src/exports/fuse/mount.ts";
import { abortMount, unmount } from "../../../../src/exports/fuse/unmount.ts";
import { EINVAL, EPERM } from "../../../../src/runtime/errno.ts";
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

describe("unmount()", () => {
  test("has written back what mappings changed before, if they may", async () => {
    const made = await mount();
    await unmount(system, made, log);
    expect(system.log.slice(1)).toEqual(["sync /a", "unmount /a"]);
    const readOnly = await mount({ writable: false });
    await unmount(system, readOnly, log);
    expect(system.log.slice(4)).toEqual(["unmount /a"]);
    expect(system.mounted).toEqual([]);
    expect([...system.open.values()]).toEqual(["/dev/fuse", "/dev/fuse"]);
  });

  test("finds the mount where it is by now", async () => {
    const made = await mount();
    const { id, dev } = system.mounted[0]!;
    system.mounted.length = 0;
    system.files.set("/moved", 0o100644);
    system.mountBy("/moved", { id, dev });
    await unmount(system, made, log);
    expect(system.log).toContain("unmount /moved");
    expect(system.mounted).toEqual([]);
  });

  test("has nothing to do when somebody else has unmounted it", async () => {
    const made = await mount();
    system.unmountBy("/a");
    system.mountBy("/a");
    await unmount(system, made, log);
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
    await unmount(system, made, log);
    expect(logged).toEqual([]);
  });

  test("does not take away what is mounted above", async () => {
    const made = await mount();
    system.mountBy("/a", { type: "ext4" });
    await unmount(system, made, log);
    expect(system.mounted).toHaveLength(2);
    expect(logged).toEqual(["error: Cannot unmount '/a': it is under another mount"]);
    expect([...system.open.values()]).toEqual(["/dev/fuse"]);
  });

  test("asks fusermount3 as an ordinary user, and says what fails", async () => {
    const made = await mount();
    system.unmountResult = -EPERM;
    system.fusermountFailure = () => ({ stderr: "fusermount3: no\n" });
    system.syncFailure = "sync: no\n";
    await unmount(system, made, log);
    expect(logged).toEqual([
      "warn: Mappings of '/a' may not be written back: sync: no",
      "error: Cannot unmount '/a': fusermount3: no",
    ]);
    system.fusermountFailure = () => undefined;
    await unmount(system, made, log);
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
