import { describe, expect, test } from "bun:test";
import { type ImpliedName, impliedOptions } from "../../../src/block/implied-names.ts";

const options = (filename: string, some: Partial<ImpliedName> = {}) =>
  impliedOptions({
    filename,
    format: "raw",
    imageFilename: "/disks/top.qcow2",
    isBlockDevice: (path) => path.startsWith("/dev/"),
    ...some,
  });
const rawAt = (filename: string, driver = "file") => ({
  driver: "raw",
  file: { driver, filename },
});

describe("impliedOptions()", () => {
  test("finds what lies beside the image", () => {
    expect(options("base.raw")).toEqual(rawAt("/disks/base.raw"));
    expect(options("../base.raw")).toEqual(rawAt("/disks/../base.raw"));
    expect(options("/base.raw")).toEqual(rawAt("/base.raw"));
    expect(options("file:base.raw")).toEqual(rawAt("base.raw"));
    expect(options("a/b:c")).toEqual(rawAt("/disks/a/b:c"));
    expect(options("base.raw", { imageFilename: undefined })).toEqual(rawAt("base.raw"));
  });

  test("opens block devices as such, and files without a format", () => {
    expect(options("/dev/sda")).toEqual(rawAt("/dev/sda", "host_device"));
    expect(options("data", { format: "file" })).toEqual({
      driver: "file",
      filename: "/disks/data",
    });
  });

  test("takes JSON with members of members", () => {
    const json = 'json:{"file.driver":"file","file":{"filename":"/x"},"driver":"qcow2"}';
    expect(options(json.replace('"file":{"filename":"/x"}', '"file.filename":"/x"'))).toEqual({
      driver: "qcow2",
      file: { driver: "file", filename: "/x" },
    });
    expect(options('json:{"size":512}')).toEqual({ driver: "raw", size: 512 });
    const hostile = options('json:{"__proto__.x":1}');
    expect(Object.hasOwn(hostile, "__proto__")).toBe(true);
    expect(({} as { x?: number }).x).toBe(undefined);
  });

  test("refuses what it can't open", () => {
    expect(() => options("nbd://host/disk")).toThrow("Unknown protocol 'nbd'");
    expect(() => options("json:{")).toThrow("Could not parse the JSON options");
    expect(() => options("json:[]")).toThrow("Invalid JSON object given");
    expect(() => options("base", { format: null })).toThrow("The format of '/disks/base'");
  });
});
