import { beforeEach, describe, expect, test } from "bun:test";
import { type MountRequest, mountOver } from "../../../../src/exports/fuse/mount.ts";
import { EACCES, EINVAL, EMFILE, EPERM } from "../../../../src/runtime/errno.ts";
import { FakeMounts } from "../../../support/fake-mounts.ts";
import { messageOf } from "../../../support/iothread.ts";

const OWN = "rootmode=100000,user_id=1000,group_id=100";
/** MS_NOSUID | MS_NODEV | MS_NOATIME */
const FLAGS = 0x406;

let system: FakeMounts;
let logged: string[];
let own: number[];

beforeEach(() => {
  system = new FakeMounts("/a", "/b");
  logged = [];
  own = [];
});

const log = (level: string, text: string) => void logged.push(`${level}: ${text}`);
const mount = (more: Partial<MountRequest> = {}) =>
  mountOver(
    system,
    {
      ...{ path: "/a", writable: true, allowOther: "auto", isOwn: (dev) => own.includes(dev) },
      ...more,
    },
    log,
  );

describe("mountOver()", () => {
  test("mounts with the options of qemu-storage-daemon", async () => {
    const made = await mount();
    expect(made).toMatchObject({ path: "/a", allowOther: true });
    expect(system.log).toEqual([
      `mount ${FLAGS} fd=N,${OWN},default_permissions,allow_other,max_read=1048576`,
    ]);
    expect([made.dev, made.mountId]).toEqual([system.mounted[0]!.dev, system.mounted[0]!.id]);
    expect([...system.open]).toEqual([[made.fd, "/dev/fuse"]]);
  });

  test("mounts read-only, and without others, when told so", async () => {
    expect(await mount({ writable: false, allowOther: "off" })).toMatchObject({
      allowOther: false,
    });
    expect(system.log).toEqual([
      `mount ${FLAGS | 1} fd=N,${OWN},default_permissions,max_read=1048576`,
    ]);
  });

  test("tries again without others when they are not permitted, if told auto", async () => {
    system.mountResult = (data) => (data.includes("allow_other") ? -EINVAL : 0);
    expect((await mount()).allowOther).toBe(false);
    expect(system.open.size).toBe(1);
    expect(logged).toEqual([]);
    expect(await messageOf(mount({ path: "/b", allowOther: "on" }))).toBe(
      "Failed to mount FUSE session to export",
    );
    expect(logged).toEqual(["error: Cannot mount on '/b': Invalid argument"]);
    expect(system.open.size).toBe(1);
  });

  test("asks fusermount3 when the kernel refuses an ordinary user", async () => {
    system.mountResult = () => -EPERM;
    expect((await mount()).allowOther).toBe(true);
    expect(system.log[1]).toBe(
      "fusermount rw,nosuid,nodev,noatime,default_permissions,allow_other,max_read=1048576",
    );
    expect(system.open.size).toBe(1);
    system.fusermountFailure = () => ({ stderr: "fusermount3: no\n" });
    expect(await messageOf(mount({ path: "/b" }))).toBe("Failed to mount FUSE session to export");
    expect(logged).toEqual(["error: Cannot mount on '/b': fusermount3: no"]);
    expect(system.open.size).toBe(1);
  });

  test("takes a mount back that it can't find", async () => {
    const { identify } = system;
    let looks = 0;
    system.identify = (pathFd) => (++looks === 2 ? -EMFILE : identify.call(system, pathFd));
    const refusal = "Failed to mount FUSE session to export";
    expect(await messageOf(mount({ allowOther: "on" }))).toBe(refusal);
    expect(system.mounted).toEqual([]);
    expect(system.open.size).toBe(0);
  });

  test("says what is wrong with a path, in QSD's words", async () => {
    system.files.set("/dir", 0o040755);
    expect(await messageOf(mount({ path: "/none" }))).toBe(
      "Failed to stat '/none': No such file or directory",
    );
    expect(await messageOf(mount({ path: "/dir" }))).toBe("'/dir' is not a regular file");
    system.files.set("/odd", -EACCES);
    expect(await messageOf(mount({ path: "/odd" }))).toBe(
      "Failed to stat '/odd': Permission denied",
    );
    expect(system.open.size).toBe(0);
    expect(system.mounted).toEqual([]);
  });

  test("knows its own mounts under any name, and does not ask them", async () => {
    const made = await mount();
    own.push(made.dev);
    system.links.set("/link", "/a");
    system.mode = () => Promise.reject(new Error("asked"));
    expect(await messageOf(mount({ path: "/link" }))).toBe(
      "There already is a FUSE export on '/link'",
    );
  });

  test("mounts over what another process serves", async () => {
    system.mountBy("/a");
    await mount();
    expect(system.mounted.map(({ path }) => path)).toEqual(["/a", "/a"]);
  });

  test("removes what a killed daemon left, however often", async () => {
    for (let i = 0; i < 3; i++) system.mountBy("/a", { isDead: true });
    const made = await mount();
    expect(system.mounted.map(({ dev }) => dev)).toEqual([made.dev]);
    expect(logged[2]).toBe("warn: removed the dead mount of an earlier export from '/a'");
    expect(system.open.size).toBe(1);
  });

  test("removes it through fusermount3 as an ordinary user", async () => {
    system.mountBy("/a", { isDead: true });
    system.unmountResult = -EPERM;
    await mount();
    expect(system.log).toContain("fusermount -u /a");
    expect(system.mounted).toHaveLength(1);
  });

  test("leaves alone what is dead and not its own", async () => {
    const others = [
      { options: ["user_id=1"] },
      { type: "fuse.sshfs" },
      { source: "host:/" },
      { type: "nfs" },
    ];
    for (const more of others) {
      system.mounted.length = 0;
      system.mountBy("/a", { isDead: true, ...more });
      expect(await messageOf(mount())).toBe(
        "Failed to stat '/a': Transport endpoint is not connected",
      );
      expect(system.mounted).toHaveLength(1);
    }
    expect(system.log).toEqual([]);
    expect(system.open.size).toBe(0);
  });

  test("gives up on what stays", async () => {
    system.mountBy("/a", { isDead: true });
    system.unmountResult = -EPERM;
    system.fusermountFailure = () => ({ stderr: "no" });
    expect(await messageOf(mount())).toContain("Transport endpoint is not connected");
    expect(system.open.size).toBe(0);
  });
});
