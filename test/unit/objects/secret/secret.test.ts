/** The kinds secret and secret_keyring. Words are those of QSD 11.1. */
import { beforeEach, describe, expect, test } from "bun:test";
import { createCipheriv } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { temporaryDirectory } from "../../../support/images.ts";
import { ObjectRig } from "../../../support/objects.ts";

let rig: ObjectRig;
beforeEach(() => {
  rig = new ObjectRig();
});

const KEY = "0123456789abcdef0123456789abcdef";
const IV = Buffer.from("fedcba9876543210").toString("base64");
const INVALID = "Base64 data contains invalid characters";

const bytesOf = (id: string) => rig.registry.find(id)?.secret;
const textOf = (id: string) => new TextDecoder().decode(bytesOf(id));
const failure = (options: object) => rig.messageOf(rig.add("secret", "s", options));

/** AES-256-CBC as the documents of QSD do it with openssl. */
function encrypt(clear: Uint8Array | string): Buffer {
  const cipher = createCipheriv("aes-256-cbc", KEY, Buffer.from(IV, "base64"));
  return Buffer.concat([cipher.update(clear), cipher.final()]);
}

describe("secret", () => {
  test("holds data as they are, or decoded", async () => {
    await rig.add("secret", "a", { data: "hêllo" });
    await rig.add("secret", "b", { data: "aGVsbG8=", format: "base64" });
    await rig.add("secret", "c", { data: "" });
    expect(["a", "b", "c"].map(textOf)).toEqual(["hêllo", "hello", ""]);
  });

  test("holds what a file held when it was made", async () => {
    await using directory = await temporaryDirectory();
    const file = directory.file("secret");
    await writeFile(file, "line\n");
    await rig.add("secret", "a", { file });
    await writeFile(file, "/////w==\n");
    await rig.add("secret", "b", { file, format: "base64" });
    expect(textOf("a")).toBe("line\n");
    expect([...(bytesOf("b") as Uint8Array)]).toEqual([255, 255, 255, 255]);
    expect(await rig.get("a", "file")).toBe(file);
  });

  test("takes data from one place", async () => {
    expect(await failure({})).toBe("Either 'file' or 'data' must be provided");
    expect(await failure({ data: "x", file: "" })).toBe("'file' and 'data' are mutually exclusive");
    expect(await failure({ data: "a b", format: "base64" })).toBe(INVALID);
    expect(await failure({ data: "x", format: "hex" })).toBe(
      "Parameter 'format' does not accept value 'hex'",
    );
    expect(await failure({ file: "/nonexist" })).toBe(
      "Unable to read /nonexist: Failed to open file “/nonexist”: No such file or directory",
    );
  });

  test("is decrypted with another secret", async () => {
    await rig.add("secret", "key", { data: KEY });
    const encrypted = { keyid: "key", iv: IV, format: "base64" };
    for (const clear of ["", "x", "exactly 16 bytes", "a longer one, of more than a block"]) {
      await rig.add("secret", "s", { ...encrypted, data: encrypt(clear).toString("base64") });
      expect(textOf("s")).toBe(clear);
      await rig.run("object-del", { id: "s" });
    }
    await using directory = await temporaryDirectory();
    const file = directory.file("raw");
    await writeFile(file, encrypt(new Uint8Array([0, 255, 0])));
    await rig.add("secret", "s", { file, keyid: "key", iv: IV });
    expect([...(bytesOf("s") as Uint8Array)]).toEqual([0, 255, 0]);
  });

  test("refuses keys, vectors and data that are none, in this order", async () => {
    await rig.add("secret", "key", { data: KEY });
    await rig.add("secret", "short", { data: KEY.slice(1) });
    await rig.add("iothread", "io0");
    const cases = [
      [{ keyid: "nope" }, "No secret with id 'nope'"],
      [{ keyid: "" }, "No secret with id ''"],
      [{ keyid: "s" }, "Secret with id 's' has no data"],
      [{ keyid: "io0" }, "Object with id 'io0' is not a secret"],
      [{ keyid: "short" }, "Key should be 32 bytes in length"],
      [{ keyid: "key" }, "IV is required to decrypt secret"],
      [{ keyid: "key", iv: "!" }, INVALID],
      [{ keyid: "key", iv: "AAAA" }, "IV should be 16 bytes in length not 3"],
      [{ keyid: "key", iv: IV, format: "base64", data: "!" }, INVALID],
      [{ keyid: "key", iv: IV }, "Length 1 must be a multiple of block size 16"],
    ] as const;
    for (const [options, message] of cases) {
      expect(await failure({ data: "x", ...options })).toBe(message);
    }
    await rig.add("secret", "s", { data: "x", iv: "!" });
    expect(textOf("s")).toBe("x");
  });

  test("says nothing of data whose padding is wrong", async () => {
    await rig.add("secret", "key", { data: KEY });
    const cipher = createCipheriv("aes-256-cbc", KEY, Buffer.from(IV, "base64"));
    const data = cipher.setAutoPadding(false).update("fifteen letters!").toString("base64");
    expect(await failure({ data, keyid: "key", iv: IV, format: "base64" })).toBe(
      "Incorrect number of padding bytes found on decrypted data",
    );
  });

  test("is never told", async () => {
    await rig.add("secret", "a", { data: "hello" });
    expect(await rig.messageOf(rig.get("a", "data"))).toBe(
      "Property 'secret.data' is not readable",
    );
    await rig.set("a", "data", "other");
    const replies = [
      await rig.run("qom-list-get", { paths: ["a", "/objects", "/"] }),
      await rig.run("qom-list", { path: "a" }),
    ];
    expect(JSON.stringify(replies)).not.toMatch(/hello|other/);
    expect(await rig.values("a")).toEqual({
      type: "secret",
      iv: "",
      keyid: "",
      format: "raw",
      file: "",
      data: undefined,
    });
    expect(rig.log).toEqual([]);
  });

  test("stays what it is when its properties change", async () => {
    await rig.add("secret", "a", { data: "hello" });
    for (const [name, value] of Object.entries({ data: "x", file: "y", format: "base64" })) {
      await rig.set("a", name, value);
    }
    expect(textOf("a")).toBe("hello");
    expect(await rig.values("a")).toMatchObject({ file: "y", format: "base64" });
    expect(await rig.messageOf(rig.set("a", "format", "hex"))).toBe(
      "Parameter 'format' does not accept value 'hex'",
    );
  });

  test("is cleared when it is deleted", async () => {
    await rig.add("secret", "a", { data: "hello" });
    const bytes = bytesOf("a") as Uint8Array;
    await rig.run("object-del", { id: "a" });
    expect([...bytes]).toEqual([0, 0, 0, 0, 0]);
  });
});

describe("secret_keyring", () => {
  const failure = (serial: unknown) => rig.messageOf(rig.add("secret_keyring", "k", { serial }));

  test("refuses keys that are not there", async () => {
    // The serial numbers of real keys are random; in a container there may be no keys at all.
    expect(await failure(123_456_789)).toMatch(/^Unable to read serial key 075bcd15: /);
    expect(await failure(-1)).toMatch(/^Unable to read serial key ffffffff: /);
    expect(await failure(0)).toBe("'serial' should not be equal to 0");
    expect(await failure(5_000_000_000)).toBe("Parameter 'serial' expects int32_t");
    expect(await failure("1")).toBe("Invalid parameter type for 'serial', expected: integer");
  });
});
