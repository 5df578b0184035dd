/** The qom-* commands. Replies are those of QSD 11.1. */
import { beforeEach, describe, expect, test } from "bun:test";
import { toQmpError } from "../../../src/qmp/error.ts";
import { ObjectRig } from "../../support/objects.ts";

let rig: ObjectRig;
beforeEach(async () => {
  rig = new ObjectRig();
  await rig.add("authz-simple", "a", { identity: "fred" });
});

const TYPE = { name: "type", type: "string" };
const IOTHREAD = [
  TYPE,
  ...["thread-pool-min", "aio-max-batch", "thread-pool-max"].map((name) => ({ name, type: "int" })),
  ...["poll-max-ns", "poll-weight", "poll-grow", "poll-shrink"].map((name) => ({
    name,
    type: "int",
  })),
];

const errorOf = (doing: Promise<unknown>): Promise<unknown> =>
  doing.then(() => undefined, toQmpError);
const notFound = (path: string) => ({
  class: "DeviceNotFound",
  desc: `Device '${path}' not found`,
});
const generic = (desc: string) => ({ class: "GenericError", desc });

describe("qom-list", () => {
  const list = (path: string) => rig.run("qom-list", { path });

  test("lists the root", async () => {
    expect(await list("/")).toEqual([
      TYPE,
      { name: "backend", type: "child<container>" },
      { name: "objects", type: "child<container>" },
      { name: "chardevs", type: "child<container>" },
      { name: "audiodevs", type: "child<container>" },
    ]);
  });

  test("finds objects by whole paths and by their ends", async () => {
    const simple = [TYPE, { name: "identity", type: "string" }];
    for (const path of ["/objects/a", "//objects//a//", "objects/a", "a", "a/"]) {
      expect(await list(path)).toEqual(simple);
    }
    for (const path of ["/objects", "objects", "objects//"]) {
      expect(await list(path)).toEqual([TYPE, { name: "a", type: "child<authz-simple>" }]);
    }
    expect(await list("/chardevs/c0")).toEqual([TYPE]);
    expect(await list("audiodevs")).toEqual([TYPE]);
  });

  test("does not find what is not there", async () => {
    for (const path of ["/a", "/machine", "nope", "a/identity", "/type", "..", "./objects"]) {
      expect(await errorOf(list(path))).toEqual(notFound(path));
    }
  });

  test("tells of ends that several paths have", async () => {
    await rig.add("iothread", "c0");
    for (const path of ["c0", "c0/", ""]) {
      expect(await errorOf(list(path))).toEqual(generic(`Path '${path}' is ambiguous`));
    }
    expect(await list("objects/c0")).toEqual(IOTHREAD);
  });
});

describe("qom-get", () => {
  test("reads properties, types and children", async () => {
    expect(await rig.get("a", "identity")).toBe("fred");
    expect(await rig.get("a", "type")).toBe("authz-simple");
    expect(await rig.get("/", "type")).toBe("container");
    expect(await rig.get("/", "objects")).toBe("/objects");
    expect(await rig.get("objects", "a")).toBe("/objects/a");
  });

  test("does not know properties or objects that are not there", async () => {
    expect(await errorOf(rig.get("a", "nope"))).toEqual(
      generic("Property 'authz-simple.nope' not found"),
    );
    expect(await errorOf(rig.get("/", ""))).toEqual(generic("Property 'container.' not found"));
    await rig.add("iothread", "c0");
    for (const path of ["nope", "c0"]) {
      expect(await errorOf(rig.get(path, "type"))).toEqual(notFound(path));
    }
  });

  test("does not take names of the language's own for properties", async () => {
    for (const name of ["__proto__", "constructor", "toString"]) {
      expect(await errorOf(rig.get("a", name))).toEqual(
        generic(`Property 'authz-simple.${name}' not found`),
      );
      expect(await errorOf(rig.set("a", name, "x"))).toEqual(
        generic(`Property 'authz-simple.${name}' not found`),
      );
    }
  });
});

describe("qom-set", () => {
  test("changes a property", async () => {
    expect(await rig.set("a", "identity", "joe")).toEqual({});
    expect(await rig.get("a", "identity")).toBe("joe");
  });

  test("refuses values of other types, and what is not writable", async () => {
    const cases = [
      ["a", "identity", 1, "Invalid parameter type for 'identity', expected: string"],
      ["a", "identity", null, "Invalid parameter type for 'identity', expected: string"],
      ["a", "type", "x", "Property 'authz-simple.type' is not writable"],
      ["/objects", "a", "x", "Property 'container.a' is not writable"],
      ["a", "nope", "x", "Property 'authz-simple.nope' not found"],
    ] as const;
    for (const [path, property, value, message] of cases) {
      expect(await errorOf(rig.set(path, property, value))).toEqual(generic(message));
    }
    expect(await errorOf(rig.set("nope", "type", 1))).toEqual(notFound("nope"));
    expect(await rig.get("a", "identity")).toBe("fred");
  });
});

describe("qom-list-get", () => {
  test("reads whole objects, the same one twice if asked", async () => {
    const simple = {
      properties: [
        { name: "type", value: "authz-simple", type: "string" },
        { name: "identity", value: "fred", type: "string" },
      ],
    };
    const objects = {
      properties: [
        { name: "type", value: "container", type: "string" },
        { name: "a", value: "/objects/a", type: "child<authz-simple>" },
      ],
    };
    expect(await rig.run("qom-list-get", { paths: ["a", "/objects", "a"] })).toEqual([
      simple,
      objects,
      simple,
    ]);
    expect(await rig.run("qom-list-get", { paths: [] })).toEqual([]);
  });

  test("fails as a whole", async () => {
    const of = (paths: unknown) => errorOf(rig.run("qom-list-get", { paths }));
    expect(await of(["a", "nope"])).toEqual(notFound("nope"));
    expect(await of([""])).toEqual(generic("Path '' is ambiguous"));
    expect(await of([1])).toEqual(
      generic("Invalid parameter type for 'paths[0]', expected: string"),
    );
  });
});

describe("qom-list-types", () => {
  type Listed = { name: string; parent?: string; abstract?: boolean };
  const list = async (args: object) => (await rig.run("qom-list-types", args)) as Listed[];
  const names = async (args: object) => (await list(args)).map(({ name }) => name).sort();

  test("lists what objects can be of, and with abstract what these come from", async () => {
    const concrete = await list({});
    expect(concrete).toContainEqual({ name: "iothread", parent: "event-loop-base" });
    expect(concrete).toContainEqual({ name: "container", parent: "object" });
    expect(concrete).toContainEqual({ name: "chardev-null", parent: "object" });
    const abstract = (await list({ abstract: true })).filter(
      (type) => !concrete.some(({ name }) => name === type.name),
    );
    expect(abstract.sort((a, b) => (a.name < b.name ? -1 : 1))).toEqual([
      { abstract: true, name: "authz", parent: "object" },
      { abstract: true, name: "event-loop-base", parent: "object" },
      { abstract: true, name: "interface" },
      { abstract: true, name: "monitor", parent: "object" },
      { abstract: true, name: "object" },
      { abstract: true, name: "secret_common", parent: "object" },
      { abstract: true, name: "user-creatable", parent: "interface" },
    ]);
    expect(await list({ abstract: false })).toEqual(concrete);
  });

  test("chooses by type and by interface", async () => {
    expect(await names({ implements: "authz" })).toEqual([
      "authz-list",
      "authz-list-file",
      "authz-simple",
    ]);
    expect(await names({ implements: "event-loop-base", abstract: true })).toEqual([
      "event-loop-base",
      "iothread",
      "main-loop",
    ]);
    const creatable = await names({ implements: "user-creatable" });
    expect(creatable).toContain("secret");
    expect(creatable).not.toContain("container");
    expect(creatable).not.toContain("authz-pam");
    expect(await names({ implements: "user-creatable", abstract: true })).toEqual(
      [...creatable, "event-loop-base", "monitor", "secret_common", "user-creatable"].sort(),
    );
    expect(await names({ implements: "nope" })).toEqual([]);
    expect(await names({ implements: "" })).toEqual([]);
  });
});

describe("qom-list-properties", () => {
  const list = (typename: string) => rig.run("qom-list-properties", { typename });

  test("lists those of a type and of what it comes from", async () => {
    expect(await list("iothread")).toEqual(IOTHREAD);
    expect(await list("event-loop-base")).toEqual(IOTHREAD.slice(0, 4));
    expect(await list("object")).toEqual([TYPE]);
    expect(await list("authz-list")).toEqual([
      TYPE,
      { name: "policy", type: "QAuthZListPolicy" },
      { name: "rules", type: "QAuthZListRule" },
    ]);
  });

  test("does not know types that are not there, nor properties of interfaces", async () => {
    for (const name of ["nope", "", "authz-listfile", "authz-pam", "__proto__"]) {
      expect(await errorOf(list(name))).toEqual({
        class: "DeviceNotFound",
        desc: `Class '${name}' not found`,
      });
    }
    for (const name of ["interface", "user-creatable"]) {
      expect(await errorOf(list(name))).toEqual(generic("Parameter 'typename' expects a QOM type"));
    }
  });
});
