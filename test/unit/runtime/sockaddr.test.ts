import { describe, expect, test } from "bun:test";
import { isIPv4, isIPv6 } from "node:net";
import {
  decodeSocketName,
  encodeSocketName,
  type SocketName,
  UNIX_PATH_BYTES_MAX,
} from "../../../src/runtime/sockaddr.ts";
import { Random } from "../../support/random.ts";

function roundTrip(name: SocketName): SocketName | undefined {
  const bytes = encodeSocketName(name);
  return bytes && decodeSocketName(bytes);
}

function inet6(address: string): SocketName {
  return { type: "inet", family: 6, address, port: 10809 };
}

describe("sockaddr", () => {
  test("encodeSocketName() lays out sockaddr_in big-endian", () => {
    const name = { type: "inet", family: 4, address: "127.0.0.1", port: 10809 } as const;
    const expected = [2, 0, 0x2a, 0x39, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    expect([...encodeSocketName(name)!]).toEqual(expected);
  });

  test("encodeSocketName() ends a path with NUL and an abstract name without", () => {
    expect([...encodeSocketName({ type: "unix", path: "/a" })!]).toEqual([1, 0, 47, 97, 0]);
    expect([...encodeSocketName({ type: "unix", path: "\0a" })!]).toEqual([1, 0, 0, 97]);
  });

  test("names survive encoding and decoding", () => {
    const names: SocketName[] = [
      { type: "unix", path: "/tmp/socket" },
      { type: "unix", path: "/tmp/süß" },
      { type: "unix", path: "\0abstract\0name" },
      { type: "inet", family: 4, address: "255.0.1.2", port: 65535 },
      inet6("::"),
      inet6("::1"),
      inet6("fe80::1%2"),
      inet6("2001:db8::8:800:200c:417a"),
      inet6("::ffff:192.168.0.1"),
      { type: "vsock", cid: 0xffff_ffff, port: 10809 },
    ];
    for (const name of names) expect(roundTrip(name)).toEqual(name);
  });

  test("decodeSocketName() shortens the longest run of zero groups, the first of equals", () => {
    const shortened = (address: string) =>
      (roundTrip(inet6(address)) as { address: string }).address;
    expect(shortened("1:0:0:2:0:0:0:3")).toBe("1:0:0:2::3");
    expect(shortened("1:0:0:2:3:0:0:4")).toBe("1::2:3:0:0:4");
    expect(shortened("1:0:2:3:4:5:6:7")).toBe("1:0:2:3:4:5:6:7");
    expect(shortened("10:0:0:0:0:0:0:0")).toBe("10::");
    expect(shortened("0:0:0:0:0:0:0:10")).toBe("::10");
    expect(shortened("2001:DB8:0:0:0:0:0:0")).toBe("2001:db8::");
  });

  test("encodeSocketName() takes the longest path and refuses a longer or empty one", () => {
    const longest = `/${"x".repeat(UNIX_PATH_BYTES_MAX - 1)}`;
    expect(roundTrip({ type: "unix", path: longest })).toEqual({ type: "unix", path: longest });
    expect(encodeSocketName({ type: "unix", path: `${longest}x` })).toBe(undefined);
    expect(encodeSocketName({ type: "unix", path: "" })).toBe(undefined);
    expect(encodeSocketName({ type: "unix", path: "/a\0b" })).toBe(undefined);
  });

  test("decodeSocketName() knows an unnamed socket and refuses another family", () => {
    expect(decodeSocketName(new Uint8Array([1, 0]))).toEqual({ type: "unix", path: "" });
    expect(decodeSocketName(new Uint8Array([16, 0, 1, 2]))).toBe(undefined);
    expect(decodeSocketName(new Uint8Array(0))).toBe(undefined);
  });

  test("encodeSocketName() takes the addresses that the runtime takes and no other", () => {
    const seed = 20_260_101;
    console.log(`seed ${seed}`);
    const random = new Random(seed);
    const alphabet = ["0", "1", "a", "F", "12", "255", "256", ".", ":", "::", "ffff", ":", "g"];
    let taken = 0;
    const wrong: string[] = [];
    for (let i = 0; i < 200_000; i++) {
      let address = "";
      for (let n = random.below(16); n >= 0; n--)
        address += alphabet[random.below(alphabet.length)];
      const six = encodeSocketName(inet6(address)) !== undefined;
      const four = encodeSocketName({ type: "inet", family: 4, address, port: 1 }) !== undefined;
      if (six !== isIPv6(address) || four !== isIPv4(address)) wrong.push(address);
      if (six || four) taken++;
    }
    expect(wrong).toEqual([]);
    expect(taken).toBeGreaterThan(100);
  });
});
