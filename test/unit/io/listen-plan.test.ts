import { describe, expect, test } from "bun:test";
import { planListen } from "../../../src/io/listen-plan.ts";
import { messageOf } from "../../support/iothread.ts";

const V4 = { address: "127.0.0.1", family: 4 } as const;
const V6 = { address: "::1", family: 6 } as const;
const resolve = async (host: string) => {
  if (host !== "localhost") throw new Error("ENOTFOUND");
  return [V6, V4, V4];
};
const inet = (host: string, port: string, more = {}) =>
  planListen({ type: "inet", host, port, ...more }, resolve, false);
const familiesOf = async (plan: ReturnType<typeof inet>) =>
  (await plan).choices[0]!.map((one) => (one as { family: number }).family);

describe("planListen()", () => {
  test("takes every address of a name once", async () => {
    expect(await inet("localhost", "10809")).toEqual({
      label: "localhost:10809",
      choices: [
        [
          { type: "inet", ...V6, port: 10809, v6only: true, keepAlive: null, mptcp: false },
          { type: "inet", ...V4, port: 10809, v6only: true, keepAlive: null, mptcp: false },
        ],
      ],
    });
  });

  test("keeps to the families that are asked for", async () => {
    expect(await familiesOf(inet("localhost", "1", { ipv4: true }))).toEqual([4]);
    expect(await familiesOf(inet("localhost", "1", { ipv6: true }))).toEqual([6]);
    expect(await familiesOf(inet("localhost", "1", { ipv4: false }))).toEqual([6]);
    expect(await familiesOf(inet("localhost", "1", { ipv6: false }))).toEqual([4]);
    expect(await familiesOf(inet("localhost", "1", { ipv4: true, ipv6: true }))).toEqual([6, 4]);
  });

  test("listens on IPv4 through an IPv6 wildcard unless it is told not to", async () => {
    expect((await inet("::", "1")).choices[0]).toMatchObject([{ family: 6, v6only: false }]);
    expect((await inet("::", "1", { ipv6: true })).choices[0]).toMatchObject([{ v6only: true }]);
    expect(await familiesOf(inet("", "1"))).toEqual([4, 6]);
  });

  test("tries ports up to `to`", async () => {
    const { choices } = await inet("127.0.0.1", "65534", { to: 65535 });
    expect(choices.map(([one]) => (one as { port: number }).port)).toEqual([65534, 65535]);
  });

  const refused: [host: string, port: string, more: object, message: string][] = [
    ["localhost", "x", {}, "localhost:x: Servname not supported for ai_socktype"],
    [
      "localhost",
      "constructor",
      {},
      "localhost:constructor: Servname not supported for ai_socktype",
    ],
    ["localhost", "__proto__", {}, "localhost:__proto__: Servname not supported for ai_socktype"],
    ["localhost", "65536", {}, "localhost:65536: Servname not supported for ai_socktype"],
    ["nohost", "10", {}, "nohost:10: Name or service not known"],
    ["", "", {}, ":: Name or service not known"],
    ["[::1]", "10", {}, "[::1]:10: Name or service not known"],
    ["localhost", "-1", {}, "localhost:-1: Servname not supported for ai_socktype"],
    ["::1", "0", { ipv6: false }, "::1:0: Address family for hostname not supported"],
  ];
  for (const [host, port, more, message] of refused) {
    test(`refuses ${message}`, async () => {
      expect(await messageOf(inet(host, port, more))).toBe(
        `address resolution failed for ${message}`,
      );
    });
  }

  test("refuses to disable both families", async () => {
    expect(await messageOf(inet("", "1", { ipv4: false, ipv6: false }))).toBe(
      "Cannot disable IPv4 and IPv6 at same time",
    );
  });

  test("makes abstract names, padded unless tight", async () => {
    const unix = { type: "unix", path: "name", abstract: true } as const;
    expect((await planListen(unix, resolve, false)).choices).toEqual([
      [{ type: "unix", path: "\0name" }],
    ]);
    const { choices } = await planListen({ ...unix, tight: false }, resolve, false);
    expect((choices[0]![0] as { path: string }).path).toHaveLength(108);
  });

  test("measures paths in bytes", async () => {
    const plan = (path: string) => planListen({ type: "unix", path }, resolve, false);
    expect((await plan("é".repeat(54))).label).toHaveLength(54);
    const path = `x${"é".repeat(54)}`;
    expect(await messageOf(plan(path))).toBe(`UNIX socket path '${path}' is too long`);
  });

  test("parses vsock numbers", async () => {
    const plan = (cid: string, port: string) =>
      planListen({ type: "vsock", cid, port }, resolve, false);
    expect((await plan("4294967295", "10809")).choices).toEqual([
      [{ type: "vsock", cid: 4294967295, port: 10809 }],
    ]);
    expect(await messageOf(plan("zz", "1"))).toBe("Failed to parse cid 'zz'");
    expect(await messageOf(plan("1", "-1"))).toBe("Failed to parse port '-1'");
  });

  test("takes numbers of descriptors on the command line only", async () => {
    const plan = (str: string, fdNumbers: boolean) =>
      planListen({ type: "fd", str }, resolve, fdNumbers);
    expect((await plan("3", true)).choices).toEqual([[{ type: "fd", fd: 3 }]]);
    expect(await messageOf(plan("name", true))).toBe("Unable to parse FD number name");
    const refusal = "only QEMU supports file descriptor passing";
    expect(await messageOf(plan("3", false))).toBe(refusal);
  });

  test("takes ports as the C library does, and no other service than nbd", async () => {
    const portOf = async (port: string) =>
      ((await inet("127.0.0.1", port)).choices[0]![0] as { port: number }).port;
    expect(await portOf("")).toBe(0);
    expect(await portOf(" 5555")).toBe(5555);
    expect(await portOf("+010")).toBe(10);
    expect(await portOf("nbd")).toBe(10809);
  });

  test("takes no names when all must be numeric", async () => {
    const numeric = { numeric: true };
    const reason = "Name or service not known";
    expect(await messageOf(inet("localhost", "1", numeric))).toContain(reason);
    expect(await messageOf(inet("127.0.0.1", "nbd", numeric))).toContain(reason);
    expect(await familiesOf(inet("::1", "1", numeric))).toEqual([6]);
  });

  test("passes keep-alive on only when it is wanted", async () => {
    const keepAliveOf = async (more: object) =>
      ((await inet("::1", "1", more)).choices[0]![0] as { keepAlive: unknown }).keepAlive;
    const counts = { "keep-alive-count": 3, "keep-alive-idle": 4 };
    expect(await keepAliveOf(counts)).toBe(null);
    expect(await keepAliveOf({ "keep-alive": true, ...counts })).toEqual({
      count: 3,
      idleSeconds: 4,
      intervalSeconds: 0,
    });
  });

  test("refuses a range of ports that has none", async () => {
    expect(await messageOf(inet("::1", "20", { to: 19 }))).toBe("No port from 20 to 19");
  });
});
