/** What users write about objects: paths, values, base64, patterns; against simpler models. */
import { expect, test } from "bun:test";
import { matchesGlob } from "../../src/objects/authz/glob.ts";
import { decodeBase64 } from "../../src/objects/secret/base64.ts";
import { parseJson } from "../../src/qmp/json-stream.ts";
import { OutportError } from "../../src/util/error.ts";
import { ObjectRig } from "../support/objects.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

const ROUNDS = 2000;

const textOf = (random: Random, letters: readonly string[], length: number) =>
  Array.from({ length: random.below(length) }, () => random.pick(letters)).join("");

test("decodeBase64() inverts the encoder, and reads groups apart", () => {
  const random = new Random(randomSeed());
  for (let round = fuzzCases(ROUNDS); round > 0; round -= 1) {
    const bytes = random.bytes(random.below(40));
    const encoded = Buffer.from(bytes).toString("base64");
    const at = random.below(encoded.length + 1);
    const text = `${encoded.slice(0, at)}\n${encoded.slice(at)}`;
    expect([...decodeBase64(new TextEncoder().encode(text))]).toEqual([...bytes]);

    const groups = textOf(random, ["A", "z", "/", "+", "9", "="], 40);
    const whole = decodeBase64(new TextEncoder().encode(groups));
    const apart = (groups.match(/.{4}/g) ?? []).flatMap((group) => [
      ...decodeBase64(new TextEncoder().encode(group)),
    ]);
    expect([...whole]).toEqual(apart);
  }
});

test("matchesGlob() agrees with a regular expression", () => {
  const random = new Random(randomSeed());
  for (let round = fuzzCases(ROUNDS); round > 0; round -= 1) {
    const pattern = textOf(random, ["a", "b", "*", "?", "é", "[", "\u{1f600}"], 8);
    const text = textOf(random, ["a", "b", "é", "[", "\u{1f600}", "\n"], 8);
    const source = pattern.replaceAll("[", "\\[").replaceAll("*", ".*").replaceAll("?", ".");
    const wanted = new RegExp(`^${source}$`, "su").test(text);
    expect([pattern, text, matchesGlob(pattern, text)]).toEqual([pattern, text, wanted]);
  }
});

test("a path leads to the objects that end with it", async () => {
  const random = new Random(randomSeed());
  const rig = new ObjectRig();
  for (const id of ["a", "b", "c0", "objects"]) await rig.add("iothread", id);
  const inObjects = ["a", "b", "c0", "objects"].map((id) => `/objects/${id}`);
  const all = ["", "/backend", "/objects", "/chardevs", "/audiodevs", "/chardevs/c0", ...inObjects];
  for (let round = fuzzCases(ROUNDS); round > 0; round -= 1) {
    const path = textOf(random, ["/", "/", "a", "b", "c0", "objects", "chardevs", "nope", ""], 6);
    const parts = path.split("/").filter((part) => part !== "");
    const end = parts.map((part) => `/${part}`).join("");
    const found = all.filter((each) => (path.startsWith("/") ? each === end : each.endsWith(end)));
    const listing = rig.messageOf(rig.run("qom-list", { path }));
    if (found.length === 1) expect(await listing).toBe(undefined);
    else if (found.length === 0) expect(await listing).toBe(`Device '${path}' not found`);
    else expect(await listing).toBe(`Path '${path}' is ambiguous`);
  }
});

test("no value makes a command fail in another way than with an error of ours", async () => {
  const random = new Random(randomSeed());
  const rig = new ObjectRig();
  await rig.add("secret", "key", { data: "0123456789abcdef0123456789abcdef" });
  const values = [
    ...[0, -1, 1, 2 ** 31, 1.5, 2 ** 53 - 1, "", "x", "key", "/dev/null", "/etc", "\0", "AAAA"],
    ...["base64", "allow", "glob", true, null, [], {}, [{ match: "*", policy: "allow" }], [[]]],
  ].map((value) => JSON.stringify(value));
  values.push("18446744073709551615", "-9223372036854775808", "1e400", '{"__proto__":[]}');
  const kinds = rig.registry.kinds;
  for (let round = fuzzCases(ROUNDS); round > 0; round -= 1) {
    const { name, members } = random.pick(kinds);
    const names = [...Object.keys(members), "__proto__", "type"];
    const given = names
      .filter(() => random.chance(0.5))
      .map((member) => `${JSON.stringify(member)}:${random.pick(values)}`);
    const id = random.pick(["a", "b", "key", "type"]);
    const json = `{${[`"qom-type":"${name}"`, `"id":"${id}"`, ...given].join()}}`;
    const options = parseJson(json) as object;
    const message = await rig.messageOf(rig.run("object-add", options));
    expect(`${json} ${message}`).not.toContain("not ours");
    const path = random.pick(["a", "b", "key", "/objects", "/"]);
    const property = random.pick([...names, "data", "rules", "poll-weight"]);
    const value = parseJson(`[${random.pick(values)}]`) as unknown[];
    const set = await rig.messageOf(rig.set(path, property, value[0]));
    expect(`${path} ${property} ${set}`).not.toContain("not ours");
    const all = { paths: ["/", "/objects", ...[...rig.registry.list()].map(([each]) => each)] };
    await rig.run("qom-list-get", all);
    if (random.chance(0.5)) await rig.messageOf(rig.run("object-del", { id }));
  }
  await expect(rig.run("qom-list-get", { paths: ["nope"] })).rejects.toBeInstanceOf(OutportError);
});
