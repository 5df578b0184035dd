/** The two forms of socket addresses. */
import { expect, test } from "bun:test";
import { check } from "../../../src/qapi/check.ts";
import {
  flattenAddress,
  nestAddress,
  socketAddress,
  socketAddressLegacy,
} from "../../../src/qapi/sockets.ts";

test("nestAddress() and flattenAddress() are each other's inverse", () => {
  const flat = check(socketAddress, { type: "inet", host: "h", port: "1", to: 2, ipv4: true });
  const nested = nestAddress(flat);
  expect(check(socketAddressLegacy, nested)).toEqual({
    type: "inet",
    data: { host: "h", port: "1", to: 2, ipv4: true },
  });
  expect(flattenAddress(nested)).toEqual(flat);
});
