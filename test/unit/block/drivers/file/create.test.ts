import { afterAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileCreation } from "../../../../../src/block/drivers/file/create.ts";
import { statPlace } from "../../../../../src/runtime/linux-mount.ts";
import { OutportError } from "../../../../../src/util/error.ts";
import { ENGINES, makeReactor, runOn } from "../../../../support/reactor.ts";

const MiB = 1024 * 1024;
const folder = mkdtempSync(join(tmpdir(), "file-create-"));
const filename = join(folder, "new");
const reactors = ENGINES.map(makeReactor);
afterAll(() => {
  for (const reactor of reactors) {
    reactor.engine.close();
    reactor.memory.unmap();
  }
  rmSync(folder, { recursive: true });
});

const cancelled = () => {
  throw new OutportError("io", "Operation canceled");
};

for (const reactor of reactors) {
  const create = (options: object, more: object = {}): Promise<string> =>
    runOn(reactor, () =>
      fileCreation
        .create({
          reactor,
          options: { filename, ...options },
          targets: {},
          checkWanted: () => {},
          servedDevices: [],
          ...more,
        })
        .then(
          () => "success",
          (error: Error) => error.message,
        ),
    );

  describe(`a new file by ${reactor.engine.name}`, () => {
    test("has the length and the room that it is to have", async () => {
      for (const preallocation of ["off", "falloc", "full"]) {
        writeFileSync(filename, "what was there");
        expect(await create({ size: 2 * MiB + 5, preallocation })).toBe("success");
        const { size, blocks } = statSync(filename);
        expect(size).toBe(2 * MiB + 5);
        expect(blocks * 512 >= 2 * MiB).toBe(preallocation !== "off");
        expect(readFileSync(filename).every((byte) => byte === 0)).toBe(true);
        rmSync(filename);
      }
    });

    test("is gone when nobody wants it any more, but not one that was there", async () => {
      for (const preallocation of ["falloc", "full"]) {
        const options = { size: 8 * MiB, preallocation };
        const more = { checkWanted: cancelled };
        expect(await create(options, more)).toBe("Operation canceled");
        expect(existsSync(filename)).toBe(false);
        writeFileSync(filename, "");
        expect(await create(options, more)).toBe("Operation canceled");
        expect(statSync(filename).size).toBe(0);
        rmSync(filename);
      }
    });

    test("takes no other file with it that has its name by then", async () => {
      const moved = join(folder, "moved");
      const checkWanted = () => {
        renameSync(filename, moved);
        writeFileSync(filename, "another's");
        cancelled();
      };
      await create({ size: MiB, preallocation: "full" }, { checkWanted });
      expect(readFileSync(filename, "utf8")).toBe("another's");
      rmSync(filename);
      rmSync(moved);
    });

    test("is not made where this process serves a file itself", async () => {
      writeFileSync(filename, "kept");
      const place = statPlace(reactor.linux, filename);
      if (typeof place === "number") throw new Error("no such file");
      const said = await create({ size: 0 }, { servedDevices: [place.dev] });
      expect(said).toBe(`Could not create '${filename}': Resource deadlock avoided`);
      expect(readFileSync(filename, "utf8")).toBe("kept");
      rmSync(filename);
    });

    test("can't have a length that no file has", async () => {
      expect(await create({ size: -5 })).toBe("Could not resize file: Invalid argument");
      expect(await create({ size: 2 ** 53 - 1 })).toBe("Could not resize file: File too large");
    });
  });
}
