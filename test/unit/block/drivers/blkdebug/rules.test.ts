import { describe, expect, test } from "bun:test";
import { Rules } from "../../../../../src/block/drivers/blkdebug/rules.ts";

const EIO = { result: -5, delayNs: 0 };

describe("Rules.faultOf()", () => {
  test("is null until an event has armed an error", () => {
    const rules = new Rules([{ event: "read_aio" }], []);
    expect(rules.faultOf("read", 0, 512)).toBeNull();
    rules.onEvent("write_aio");
    expect(rules.faultOf("read", 0, 512)).toBeNull();
    rules.onEvent("read_aio");
    expect(rules.faultOf("read", 0, 512)).toEqual(EIO);
    expect(rules.faultOf("write", 0, 512)).toEqual(EIO);
    expect(rules.faultOf("flush", 0, 0)).toEqual(EIO);
  });

  test("leaves queries of the status alone unless they are named", () => {
    const rules = new Rules([{ event: "none" }], []);
    rules.onEvent("none");
    expect(rules.faultOf("block-status", 0, 512)).toBeNull();
    const named = new Rules([{ event: "none", iotype: "block-status", errno: 28 }], []);
    named.onEvent("none");
    expect(named.faultOf("block-status", 0, 512)).toEqual({ result: -28, delayNs: 0 });
    expect(named.faultOf("read", 0, 512)).toBeNull();
  });

  test("hits only requests for the sector", () => {
    const rules = new Rules([{ event: "none", sector: 8 }], []);
    rules.onEvent("none");
    expect(rules.faultOf("read", 0, 4096)).toBeNull();
    expect(rules.faultOf("read", 4096, 512)).toEqual(EIO);
    expect(rules.faultOf("read", 0, 4097)).toEqual(EIO);
    expect(rules.faultOf("read", 4608, 512)).toBeNull();
    expect(rules.faultOf("flush", 0, 0)).toBeNull();
  });

  test("is null after one request with once, whatever events follow", () => {
    const rules = new Rules([{ event: "none", once: true }], []);
    rules.onEvent("none");
    expect(rules.faultOf("read", 0, 512)).toEqual(EIO);
    expect(rules.faultOf("read", 0, 512)).toBeNull();
    rules.onEvent("none");
    expect(rules.faultOf("read", 0, 512)).toBeNull();
  });

  test("only delays with errno 0", () => {
    const rules = new Rules([{ event: "none", errno: 0, "delay-ns": 7 }], []);
    rules.onEvent("none");
    expect(rules.faultOf("read", 0, 512)).toEqual({ result: 0, delayNs: 7 });
  });
});

describe("Rules.onEvent()", () => {
  test("disarms the errors of other events", () => {
    const rules = new Rules(
      [
        { event: "read_aio", errno: 5 },
        { event: "write_aio", errno: 28, iotype: "write" },
      ],
      [],
    );
    rules.onEvent("read_aio");
    rules.onEvent("write_aio");
    expect(rules.faultOf("read", 0, 512)).toBeNull();
    expect(rules.faultOf("write", 0, 512)).toEqual({ result: -28, delayNs: 0 });
  });

  test("goes through states: the third write fails", () => {
    const rules = new Rules(
      [{ event: "write_aio", state: 3 }],
      [
        { event: "write_aio", state: 1, new_state: 2 },
        { event: "write_aio", state: 2, new_state: 3 },
      ],
    );
    const faults = [1, 2, 3].map(() => {
      rules.onEvent("write_aio");
      return rules.faultOf("write", 0, 512);
    });
    expect(faults).toEqual([null, null, EIO]);
  });

  test("looks at the state from before the event", () => {
    const rules = new Rules(
      [{ event: "read_aio", state: 2 }],
      [{ event: "read_aio", new_state: 2 }],
    );
    rules.onEvent("read_aio");
    expect(rules.faultOf("read", 0, 512)).toBeNull();
    rules.onEvent("read_aio");
    expect(rules.faultOf("read", 0, 512)).toEqual(EIO);
  });
});
