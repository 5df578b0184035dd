import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as abi from "../../../../../src/abi/qcow2.ts";
import {
  parseExtensions,
  parseHeader,
  viewOf,
} from "../../../../../src/block/drivers/qcow2/header.ts";
import { OP_WRITE } from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { EINVAL, ENOSPC } from "../../../../../src/runtime/errno.ts";
import { Payload } from "../../../../support/block.ts";
import { run } from "../../../../support/clients.ts";
import { checkImage, memorySource, Qcow2Image } from "../../../../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

describe("changeBackingFile()", () => {
  let folder: string;
  let path: string;
  let base: string;
  let reactor: Reactor;
  let image: OpenedImage;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "outport-backing-"));
    path = join(folder, "image.qcow2");
    base = join(folder, "base.raw");
    writeFileSync(base, new Uint8Array(65_536));
    reactor = makeReactor("epoll");
  });

  afterEach(async () => {
    await image.close();
    reactor.engine.close();
    reactor.memory.unmap();
    rmSync(folder, { recursive: true });
  });

  const open = async (options: string): Promise<void> => {
    const backing = ["-b", base, "-F", "raw"];
    await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, ...backing, path, "1M"]);
    image = await openQcow2(reactor, { path, backing: { path: base, format: "raw" } });
  };
  const change = (name: string, format: string) =>
    runOn(reactor, () => image.node.changeBackingFile!(name, format));
  const types = (): number[] => {
    const bytes = new Uint8Array(readFileSync(path));
    return parseExtensions(parseHeader(bytes), bytes).map(({ type }) => type);
  };
  /** Whatever it names. */
  const alone = () => new Qcow2Image({ source: memorySource(readFileSync(path)) });
  const named = (): (string | null)[] => {
    const { header } = alone();
    return [header.backingFile, header.backingFormat];
  };

  for (const options of ["compat=1.1", "compat=0.10", "cluster_size=4k"]) {
    test(`names another one, of any format: ${options}`, async () => {
      await open(options);
      const before = types();
      for (const [name, format] of [
        ["a", "raw"],
        ["b".repeat(1023), "raw"],
        ["c", "qcow2"],
        // It takes more room: all that follows has to move.
        ["d".repeat(500), "copy-on-read"],
        ["e", "raw"],
      ] as const) {
        expect(await change(name, format)).toBe(0);
        expect(named()).toEqual([name, format]);
        expect(types()).toEqual(before);
        expect(image.node.describe().image).toMatchObject({
          "backing-filename": name,
          "backing-filename-format": format,
        });
      }
      expect(await change("", "raw")).toBe(0);
      expect(named()[0]).toBe(null);
      expect(image.node.describe().image?.["backing-filename"]).toBe(undefined);
      const payload = new Payload(reactor, 512);
      const write = () => image.backend.request(OP_WRITE, 0, 512, payload.address, 0);
      expect(await runOn(reactor, write)).toBe(0);
      await image.close();
      expect(checkImage(alone()).corruptions).toEqual([]);
      image = await openQcow2(reactor, { path });
    });
  }

  test("takes back no mark that is set meanwhile", async () => {
    await open("lazy_refcounts=on");
    const payload = new Payload(reactor, 512);
    const write = () => image.backend.request(OP_WRITE, 0, 512, payload.address, 0);
    expect(await runOn(reactor, write)).toBe(0);
    const both = () => [image.node.changeBackingFile!("a", "raw"), image.node.flush()];
    expect(await runOn(reactor, () => Promise.all(both()))).toEqual([0, 0]);
    expect(named()).toEqual(["a", "raw"]);
    const header = viewOf(new Uint8Array(readFileSync(path)));
    const marks = header.getUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4);
    expect(marks & abi.QCOW2_INCOMPAT_DIRTY).toBe(abi.QCOW2_INCOMPAT_DIRTY);
  });

  test("leaves all as it was where the name has no room", async () => {
    await open("cluster_size=512,compat=0.10");
    expect(await change("x".repeat(480), "raw")).toBe(-ENOSPC);
    expect(await change("x".repeat(1024), "raw")).toBe(-EINVAL);
    expect(named()).toEqual([base, "raw"]);
    const header = viewOf(new Uint8Array(readFileSync(path)));
    expect(header.getUint32(abi.HEADER_BACKING_FILE_SIZE)).toBe(base.length);
  });
});
