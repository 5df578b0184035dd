/** The host's files and mounts, without any, for unit tests of FUSE exports on main. */
import type { FusermountFailure } from "../../src/exports/fuse/fusermount.ts";
import type { MountSystem } from "../../src/exports/fuse/mount-system.ts";
import { EBADF, ENOENT, ENOTCONN } from "../../src/runtime/errno.ts";
import type { MountIdentity } from "../../src/runtime/linux-mount.ts";
import type { Mount } from "../../src/runtime/mountinfo.ts";

const REGULAR = 0o100644;
/** Of the file system below all mounts. */
const BOTTOM: MountIdentity = { dev: 5, mountId: 1 };

interface FakeMount extends Mount {
  isDead: boolean;
}

/** Every descriptor that is given out is in `open` until it is closed. */
export class FakeMounts implements MountSystem {
  readonly uid = 1000;
  readonly gid = 100;
  /** By path: st_mode. Paths that lead to others are in `links`. */
  readonly files = new Map<string, number>();
  readonly links = new Map<string, string>();
  /** The newest last. */
  readonly mounted: FakeMount[] = [];
  /** By descriptor: its path, or "/dev/fuse". */
  readonly open = new Map<number, string>();
  readonly log: string[] = [];
  /** Of mount() and unmount(): 0, or what they fail with. */
  mountResult: (data: string) => number = () => 0;
  unmountResult = 0;
  /** Of the program for ordinary users. */
  fusermountFailure: (options: readonly string[]) => FusermountFailure | undefined = () =>
    undefined;
  syncFailure: string | undefined;
  /** What unmount() and sync() wait for. */
  before: Promise<void> = Promise.resolve();
  #lastFd = 2;
  #lastMount = 40;

  constructor(...paths: readonly string[]) {
    for (const path of paths) this.files.set(path, REGULAR);
  }

  /** As somebody else does. */
  mountBy(path: string, more: Partial<FakeMount> = {}): FakeMount {
    const id = ++this.#lastMount;
    const mount: FakeMount = {
      ...{ id, dev: id, root: "/", path, type: "fuse", source: "/dev/fuse", isDead: false },
      options: ["rw", `user_id=${this.uid}`],
      ...more,
    };
    this.mounted.push(mount);
    return mount;
  }

  unmountBy(path: string): void {
    const index = this.mounted.findLastIndex((mount) => mount.path === path);
    this.mounted.splice(index, 1);
  }

  mounts(): Mount[] {
    return [...this.mounted];
  }

  async openPath(path: string): Promise<number> {
    const target = this.#follow(path);
    if (!this.files.has(target)) return -ENOENT;
    return this.#give(target);
  }

  async closePath(pathFd: number): Promise<void> {
    this.close(pathFd);
  }

  identify(pathFd: number): MountIdentity | number {
    const path = this.open.get(pathFd);
    if (path === undefined) return -EBADF;
    const mount = this.#top(path);
    return mount === undefined ? BOTTOM : { dev: mount.dev, mountId: mount.id };
  }

  async mode(path: string): Promise<number> {
    const target = this.#follow(path);
    if (this.#top(target)?.isDead === true) return -ENOTCONN;
    return this.files.get(target) ?? -ENOENT;
  }

  openDevice(): number {
    return this.#give("/dev/fuse");
  }

  close(fd: number): void {
    if (!this.open.delete(fd)) throw new Error(`descriptor ${fd} is not open`);
  }

  async mount(pathFd: number, flags: number, data: string): Promise<number> {
    this.log.push(`mount ${flags} ${data.replace(/^fd=\d+/, "fd=N")}`);
    const result = this.mountResult(data);
    if (result === 0) this.mountBy(this.open.get(pathFd)!);
    return result;
  }

  async unmount(pathFd: number): Promise<number> {
    await this.before;
    const path = this.open.get(pathFd)!;
    this.log.push(`unmount ${path}`);
    if (this.unmountResult === 0) this.unmountBy(path);
    return this.unmountResult;
  }

  async sync(path: string): Promise<string | undefined> {
    await this.before;
    this.log.push(`sync ${path}`);
    return this.syncFailure;
  }

  async fusermount(path: string, options: readonly string[]): Promise<number | FusermountFailure> {
    this.log.push(`fusermount ${options.join(",")}`);
    const failure = this.fusermountFailure(options);
    if (failure !== undefined) return failure;
    this.mountBy(this.#follow(path));
    return this.#give("/dev/fuse");
  }

  async fusermountUnmount(path: string): Promise<FusermountFailure | undefined> {
    this.log.push(`fusermount -u ${path}`);
    const failure = this.fusermountFailure(["-u"]);
    if (failure === undefined) this.unmountBy(path);
    return failure;
  }

  abort(path: string, dev: number): void {
    this.log.push(`abort ${path}`);
    if (this.#top(path)?.dev === dev) this.unmountBy(path);
  }

  closeAll(): void {
    this.log.push("close");
  }

  #follow(path: string): string {
    return this.links.get(path) ?? path;
  }

  #top(path: string): FakeMount | undefined {
    return this.mounted.findLast((mount) => mount.path === path);
  }

  #give(path: string): number {
    this.#lastFd++;
    this.open.set(this.#lastFd, path);
    return this.#lastFd;
  }
}
