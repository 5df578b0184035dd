/** probeFormat(): what the first bytes of a file tell. */
import { describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { isQcow2, namesFiles } from "../../../src/block/drivers/qcow2/probe.ts";
import { PROBE_BYTES, probeFormat } from "../../../src/block/probe.ts";
import { emptyImage } from "../../support/qcow2-header.ts";
import { Random } from "../../support/random.ts";
import { smallImages } from "../../support/small-images.ts";

const probe = (start: Uint8Array) => probeFormat(blockDrivers, start)?.name;
const bytesOf = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));

describe("probeFormat()", () => {
  test("knows the images that there are drivers for", () => {
    for (const make of smallImages) {
      const { name, driver, file } = make();
      // A fixed vpc begins with data.
      const expected = name === "fixed vpc" ? undefined : driver;
      expect([name, probe(file.slice(0, PROBE_BYTES))]).toEqual([name, expected]);
    }
    expect(probe(emptyImage().slice(0, PROBE_BYTES))).toBe("qcow2");
    expect(probe(bytesOf("# Disk DescriptorFile\nversion=1\n"))).toBe("vmdk");
  });

  test("tells nothing of other content, however short", () => {
    const random = new Random(7);
    for (let bytes = 0; bytes <= PROBE_BYTES; bytes += 3) {
      expect(probe(random.bytes(bytes))).toBeUndefined();
      expect(probe(emptyImage().slice(0, Math.min(bytes, 71)))).toBeUndefined();
    }
  });

  test("refuses formats that there is no driver for", () => {
    const v1 = emptyImage().slice(0, PROBE_BYTES);
    v1[7] = 1;
    expect(() => probe(v1)).toThrow("Images of format 'qcow' are not supported");
    expect(() => probe(bytesOf("LUKS\xba\xbe\0\x01"))).toThrow(
      "The image is encrypted: use --object and --blockdev",
    );
  });
});

describe("namesFiles()", () => {
  test("finds a backing file and a data file", () => {
    const changed = (at: number, value: number): Uint8Array => {
      const start = emptyImage().slice(0, PROBE_BYTES);
      start[at] = value;
      expect(isQcow2(start)).toBe(true);
      return start;
    };
    expect(namesFiles(emptyImage())).toBe(false);
    expect(namesFiles(changed(15, 112))).toBe(true);
    expect(namesFiles(changed(79, 4))).toBe(true);
    expect(namesFiles(changed(79, 3))).toBe(false);
    expect(namesFiles(emptyImage().slice(0, 80))).toBe(true);
  });
});
