import { describe, expect, test } from "bun:test";
import { NBD_REP_ERR_INVALID } from "../../../../src/abi/nbd.ts";
import { OptionReplies } from "../../../../src/exports/nbd/option-replies.ts";
import { concat, parseOptionReplies, textOf } from "../../../support/nbd-wire.ts";

describe("OptionReplies", () => {
  test("keeps every byte in order while it grows and is sent in pieces", () => {
    const replies = new OptionReplies();
    const sent: Uint8Array[] = [];
    const messages = Array.from({ length: 50 }, (_, i) => `${i}${"x".repeat(i * 37)}`);
    for (const [index, message] of messages.entries()) {
      replies.option = index;
      replies.text(NBD_REP_ERR_INVALID, message);
      const piece = new Uint8Array(index * 13);
      const bytes = replies.copy(piece);
      replies.advance(bytes);
      sent.push(piece.subarray(0, bytes));
    }
    const rest = new Uint8Array(replies.pendingBytes);
    replies.advance(replies.copy(rest));
    const parsed = parseOptionReplies(concat(...sent, rest)).replies;
    expect(parsed.map(({ data }) => textOf(data))).toEqual(messages);
    expect(parsed.map(({ option }) => option)).toEqual(messages.map((_, index) => index));
    expect(replies.pendingBytes).toBe(0);
  });

  test("writes sizes beyond 32 bits", () => {
    const replies = new OptionReplies();
    replies.exportName(0x12_3456_789a_bcde, 0xffff, false);
    const bytes = new Uint8Array(10);
    replies.copy(bytes);
    expect([...bytes]).toEqual([0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xff, 0xff]);
  });
});
