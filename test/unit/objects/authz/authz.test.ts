/** The kinds of authorization. Words are those of QSD 11.1, but for authz-listfile: it has none. */
import { beforeEach, describe, expect, test } from "bun:test";
import { rename, rm, writeFile } from "node:fs/promises";
import { type TemporaryDirectory, temporaryDirectory } from "../../../support/images.ts";
import { ObjectRig } from "../../../support/objects.ts";

let rig: ObjectRig;
beforeEach(() => {
  rig = new ObjectRig();
});

const allowed = (id: string, identity: string) => rig.registry.find(id)?.isAllowed?.(identity);

describe("authz-simple", () => {
  test("lets one in", async () => {
    await rig.add("authz-simple", "a", { identity: "fred" });
    expect(["fred", "Fred", "fre", ""].map((peer) => allowed("a", peer))).toEqual([
      true,
      false,
      false,
      false,
    ]);
    await rig.set("a", "identity", "joe");
    expect(["fred", "joe"].map((peer) => allowed("a", peer))).toEqual([false, true]);
    expect(await rig.values("a")).toEqual({ type: "authz-simple", identity: "joe" });
  });
});

const RULES = [
  { match: "fred", policy: "allow" },
  { match: "f*", policy: "deny", format: "glob" },
  { match: "g*", policy: "allow", format: "exact" },
];

describe("authz-list", () => {
  test("goes by the first rule that matches, then by its policy", async () => {
    await rig.add("authz-list", "closed", { rules: RULES });
    await rig.add("authz-list", "open", { rules: RULES, policy: "allow" });
    const peers = ["fred", "frida", "g*", "gina"];
    expect(peers.map((peer) => allowed("closed", peer))).toEqual([true, false, true, false]);
    expect(peers.map((peer) => allowed("open", peer))).toEqual([true, false, true, true]);
  });

  test("denies all without rules", async () => {
    await rig.add("authz-list", "a");
    expect(allowed("a", "fred")).toBe(false);
    expect(await rig.values("a")).toEqual({ type: "authz-list", policy: "deny", rules: [] });
  });

  test("takes new rules and policies while it lives", async () => {
    await rig.add("authz-list", "a", { rules: RULES });
    await rig.set("a", "rules", [{ match: "joe", policy: "deny" }]);
    await rig.set("a", "policy", "allow");
    expect(["fred", "joe"].map((peer) => allowed("a", peer))).toEqual([true, false]);
    expect(await rig.get("a", "rules")).toEqual([{ match: "joe", policy: "deny" }]);
  });

  test("refuses rules that are none, and keeps those that it has", async () => {
    await rig.add("authz-list", "a", { rules: RULES });
    const rule = { match: "x", policy: "deny" };
    const cases = [
      ["rules", [{ match: "x" }], "Parameter 'rules[0].policy' is missing"],
      ["rules", [rule, 1], "Invalid parameter type for 'rules[1]', expected: object"],
      ["rules", [{ ...rule, a: 1 }], "Parameter 'rules[0].a' is unexpected"],
      ["rules", [{ ...rule, format: "re" }], "Parameter 'format' does not accept value 're'"],
      ["rules", {}, "Invalid parameter type for 'rules', expected: array"],
      ["policy", "maybe", "Parameter 'policy' does not accept value 'maybe'"],
    ] as const;
    for (const [property, value, message] of cases) {
      expect(await rig.messageOf(rig.set("a", property, value))).toBe(message);
      expect(await rig.messageOf(rig.add("authz-list", "b", { [property]: value }))).toBe(message);
    }
    expect(await rig.values("a")).toEqual({ type: "authz-list", policy: "deny", rules: RULES });
  });
});

describe("authz-listfile", () => {
  const JOE = JSON.stringify({ rules: [{ match: "joe", policy: "allow" }] });
  const FRED = JSON.stringify({ rules: [{ match: "fred", policy: "allow" }] });
  const add = (filename: string, options = {}) =>
    rig.add("authz-listfile", "a", { filename, ...options });
  const peers = () => ["fred", "joe"].filter((peer) => allowed("a", peer));

  const fileWith = async (directory: TemporaryDirectory, text: string) => {
    const filename = directory.file("rules.json");
    await writeFile(filename, text);
    return filename;
  };

  test("follows its file: written anew, replaced, gone, of no use", async () => {
    await using directory = await temporaryDirectory();
    const filename = await fileWith(directory, FRED);
    await add(filename);
    expect(peers()).toEqual(["fred"]);
    // Shorter than any clock's tick after the last change, and of the same length.
    await writeFile(filename, JOE.replace("joe", "joe "));
    expect(peers()).toEqual([]);
    await writeFile(filename, JOE);
    expect(peers()).toEqual(["joe"]);
    await writeFile(directory.file("new"), FRED);
    await rename(directory.file("new"), filename);
    expect(peers()).toEqual(["fred"]);
    await rm(filename);
    expect(peers()).toEqual(["fred"]);
    await writeFile(filename, "[]");
    expect(peers()).toEqual([]);
    expect(rig.log[0]).toEqual(["error", `File '${filename}' must contain a JSON object`]);
    await writeFile(filename, `{"policy":"allow"}`);
    expect(peers()).toEqual(["fred", "joe"]);
  });

  test("does not read a file again that did not change", async () => {
    await using directory = await temporaryDirectory();
    const filename = await fileWith(directory, "[]");
    await writeFile(filename, FRED);
    await add(filename);
    await writeFile(filename, "[]");
    expect(peers()).toEqual([]);
    // Once for each question while the change is fresh, once more when it is not.
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(peers()).toEqual([]);
    const count = rig.log.length;
    expect(peers()).toEqual([]);
    expect(rig.log.length).toBe(count);
  });

  test("keeps the first rules with refresh=off", async () => {
    await using directory = await temporaryDirectory();
    const filename = await fileWith(directory, FRED);
    await add(filename, { refresh: false });
    await writeFile(filename, JOE);
    expect(peers()).toEqual(["fred"]);
    expect(await rig.values("a")).toEqual({ type: "authz-list-file", filename, refresh: false });
  });

  test("refuses files that it can't use", async () => {
    await using directory = await temporaryDirectory();
    const filename = directory.file("rules.json");
    const cases = [
      ["[]", `File '${filename}' must contain a JSON object`],
      ["{", "JSON parse error"],
      ["", "Expecting a JSON value"],
      ['{"nope":1}', "Property 'authz-list.nope' not found"],
      ['{"__proto__":{}}', "Property 'authz-list.__proto__' not found"],
      ['{"rules":[{"match":"x"}]}', "Parameter 'rules[0].policy' is missing"],
    ] as const;
    for (const [text, message] of cases) {
      await writeFile(filename, text);
      expect(await rig.messageOf(add(filename))).toContain(message);
    }
    expect(await rig.messageOf(add("/nonexist"))).toBe(
      "Unable to read '/nonexist': Failed to open file “/nonexist”: No such file or directory",
    );
    expect(rig.registry.find("a")).toBe(undefined);
  });
});
