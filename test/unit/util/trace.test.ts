/** Trace points: flags, lines and patterns. */
import { afterEach, describe, expect, test } from "bun:test";
import { matchTraceNames, trace, traceAs } from "../../../src/util/trace.ts";
import { TRACE_NAMES } from "../../../src/util/trace-names.ts";

const written: string[] = [];
const output = {
  stderr: (text: string) => void written.push(text),
  file: (fd: number, text: string) => void written.push(`${fd}: ${text}`),
  realTimeUs: () => 0,
};

afterEach(() => {
  written.length = 0;
  traceAs({ enabled: [], fd: null, format: "text" }, output);
});

describe("trace points", () => {
  test("are off, and on when they are named", () => {
    expect(TRACE_NAMES.filter((name) => trace[name].enabled)).toEqual([]);
    traceAs({ enabled: ["nbd_receive_request"], fd: null, format: "text" }, output);
    expect(TRACE_NAMES.filter((name) => trace[name].enabled)).toEqual(["nbd_receive_request"]);
    traceAs({ enabled: ["blk_root_attach"], fd: null, format: "text" }, output);
    expect(trace.nbd_receive_request.enabled).toBe(false);
  });

  test("write their name and what they say as one line", () => {
    traceAs({ enabled: [], fd: null, format: "text" }, output);
    trace.blk_root_attach.write("id 'a\nb'");
    expect(written).toEqual(["blk_root_attach id 'a\\x0ab'\n"]);
  });

  test("write to a file when there is one", () => {
    traceAs({ enabled: [], fd: 7, format: "json" }, output);
    trace.blk_root_attach.write("x");
    expect(written).toEqual(["7: blk_root_attach x\n"]);
  });

  test("keep stderr JSON where the log is", () => {
    traceAs({ enabled: [], fd: null, format: "json" }, output);
    trace.blk_root_attach.write("x");
    expect(JSON.parse(written[0]!)).toEqual({
      time: "1970-01-01T00:00:00.000Z",
      level: "trace",
      component: "trace",
      message: "blk_root_attach x",
    });
  });

  test("have names of their own", () => {
    expect(new Set(TRACE_NAMES).size).toBe(TRACE_NAMES.length);
    for (const name of TRACE_NAMES) expect(name).toMatch(/^[a-z][a-z0-9_]*$/);
  });
});

describe("matchTraceNames()", () => {
  test("takes stars for any text and question marks for any character", () => {
    expect(matchTraceNames("blk_root_attach")).toEqual(["blk_root_attach"]);
    expect(matchTraceNames("?lk_root_attac?")).toEqual(["blk_root_attach"]);
    expect(matchTraceNames("blk_root_*")).toEqual(["blk_root_attach", "blk_root_detach"]);
    expect(matchTraceNames("*_root_*tach")).toEqual(["blk_root_attach", "blk_root_detach"]);
    expect(matchTraceNames("*")).toEqual([...TRACE_NAMES]);
  });

  test("takes nothing else for a pattern", () => {
    for (const pattern of [
      "",
      "blk",
      "blk.root.attach",
      "bl[a-z]_root_attach",
      "blk_root_(",
      "(",
    ]) {
      expect(matchTraceNames(pattern)).toEqual([]);
    }
  });
});
