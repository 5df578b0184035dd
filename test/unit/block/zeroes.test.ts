import { describe, expect, test } from "bun:test";
import { isZero } from "../../../src/block/zeroes.ts";
import { Payload } from "../../support/block.ts";
import { makeReactor } from "../../support/reactor.ts";

describe("isZero()", () => {
  const reactor = makeReactor("epoll");
  const payload = new Payload(reactor, 4096);

  test("sees every single byte, at any alignment", () => {
    payload.u8.fill(0);
    for (let from = 0; from < 9; from++) {
      for (let bytes = 1; bytes < 40; bytes++) {
        const address = payload.address + from;
        expect(isZero(reactor, address, bytes)).toBe(true);
        for (let at = 0; at < bytes; at++) {
          payload.u8[from + at] = 0x80;
          expect(isZero(reactor, address, bytes)).toBe(false);
          payload.u8[from + at] = 0;
        }
      }
    }
  });

  test("looks at nothing outside", () => {
    payload.u8.fill(0xff);
    payload.u8.fill(0, 100, 3000);
    expect(isZero(reactor, payload.address + 100, 2900)).toBe(true);
    expect(isZero(reactor, payload.address + 99, 2901)).toBe(false);
    expect(isZero(reactor, payload.address + 100, 2901)).toBe(false);
  });

  test("calls nothing zero", () => {
    expect(isZero(reactor, payload.address, 0)).toBe(true);
  });
});
