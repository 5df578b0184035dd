import { describe, expect, test } from "bun:test";
import { parseConfig } from "../../../../../src/block/drivers/blkdebug/config.ts";

describe("parseConfig()", () => {
  test("reads groups of both kinds", () => {
    const text = `# errors
[inject-error]
event = "read_aio"
errno = "0x1c"
once = "on"

[set-state]
  event="write_aio"
state = "1"
new_state = "2"
[inject-error]
event = "flush_to_disk"
iotype = "flush"
`;
    expect(parseConfig(text)).toEqual({
      injectErrors: [
        { event: "read_aio", errno: 28, once: true },
        { event: "flush_to_disk", iotype: "flush" },
      ],
      setStates: [{ event: "write_aio", state: 1, new_state: 2 }],
    });
    expect(parseConfig("")).toEqual({ injectErrors: [], setStates: [] });
  });

  const refused: [string, string][] = [
    ["garbage", "parse error"],
    ['event = "read_aio"', "no group defined"],
    ["[nope]", "There is no option group 'nope'"],
    ["[__proto__]", "There is no option group '__proto__'"],
    ['[inject-error]\nerrno = "5"', "Missing event name for rule"],
    ['[inject-error]\nevent = "nope"', "invalid parameter value: nope"],
    ['[inject-error]\nfoo = "5"', "Invalid parameter 'foo'"],
    ['[inject-error]\nconstructor = "5"', "Invalid parameter 'constructor'"],
    ['[inject-error]\nerrno = "x"', "Parameter 'errno' expects a number"],
    ['[inject-error]\nonce = "x"', "Parameter 'once' expects 'on' or 'off'"],
    ['[inject-error]\niotype = "x"', "invalid parameter value: x"],
  ];
  for (const [text, message] of refused) {
    test(`refuses ${JSON.stringify(text)}`, () => {
      expect(() => parseConfig(text)).toThrow(message);
    });
  }
});
