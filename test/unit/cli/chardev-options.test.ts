/** parseChardevOption(): words of QSD. */
import { describe, expect, test } from "bun:test";
import { parseChardevOption } from "../../../src/cli/chardev-options.ts";
import type { ChardevBackend } from "../../../src/qapi/chardev.ts";

function parse(text: string): { id: string; backend: ChardevBackend } {
  const request = parseChardevOption(text, () => {});
  if ("answer" in request) throw new Error("a question");
  return request;
}

describe("parseChardevOption()", () => {
  test("reads the address and role of a socket", () => {
    expect(parse("socket,id=a,path=/x,,y,server=on,wait=off")).toEqual({
      id: "a",
      backend: {
        type: "socket",
        data: { addr: { type: "unix", data: { path: "/x,y" } }, server: true, wait: false },
      },
    });
    const cases: [string, object][] = [
      [
        "path=x,abstract=on,tight=off",
        {
          addr: { type: "unix", data: { path: "x", abstract: true, tight: false } },
          server: false,
        },
      ],
      [
        "host=h,port=70,server,nowait,to=80,ipv6=off",
        {
          addr: { type: "inet", data: { host: "h", port: "70", to: 80, ipv6: false } },
          server: true,
          wait: false,
        },
      ],
      ["fd=3,server=on", { addr: { type: "fd", data: { str: "3" } }, server: true, wait: true }],
      [
        "fd=3,reconnect-ms=9,delay=off",
        {
          addr: { type: "fd", data: { str: "3" } },
          server: false,
          "reconnect-ms": 9,
          nodelay: true,
        },
      ],
    ];
    for (const [written, ms] of Object.entries({ "0x10": 16, "010": 8, "-0x1": -1 })) {
      const data = { addr: { type: "unix", data: { path: "x" } }, "reconnect-ms": ms };
      cases.push([`path=x,reconnect-ms=${written}`, { ...data, server: false }]);
    }
    for (const [text, data] of cases) {
      expect(parse(`socket,id=a,${text}`).backend).toEqual({ type: "socket", data } as never);
    }
  });

  test("reads the other kinds", () => {
    expect(parse("stdio,id=a,signal=off").backend).toEqual({
      type: "stdio",
      data: { signal: false },
    });
    expect(parse("null,id=a").backend).toEqual({ type: "null", data: {} });
    expect(parse("pipe,id=a,path=/p").backend).toEqual({ type: "pipe", data: { device: "/p" } });
    expect(parse("file,id=a,path=/o,input-path=/i,append=on").backend).toEqual({
      type: "file",
      data: { out: "/o", in: "/i", append: true },
    });
  });

  test("refuses what is wrong in QSD's words", () => {
    const cases: [string, string][] = [
      ["foo", "chardev: no id specified"],
      ["", "chardev: no id specified"],
      ["id=a", 'chardev: "a" missing backend'],
      ["foo,id=a", "'foo' is not a valid char driver name"],
      ["socket,id=9", "Parameter 'id' expects an identifier"],
      ["file,id=a", "chardev: file: no filename given"],
      ["pipe,id=a", "chardev: pipe: no device path given"],
      ["socket,id=a", "Unable to parse FD number "],
      ["socket,id=a,fd=x", "Unable to parse FD number x"],
      ["socket,id=a,path=x,foo=1", "Invalid parameter 'foo'"],
      ["socket,id=a,path=x,server=zz", "Parameter 'server' expects 'on' or 'off'"],
      [
        "socket,id=a,path=x,reconnect-ms=99999999999999999999",
        "Value '99999999999999999999' is too large for parameter 'reconnect-ms'",
      ],
      ["socket,id=a,path=x,reconnect-ms=z", "Parameter 'reconnect-ms' expects a number"],
      ["socket,id=a,path=x,delay=on,nodelay=on", "'delay' and 'nodelay' are mutually exclusive"],
      ["socket,id=a,host=h,server=on", "chardev: socket: no port given"],
      [
        "socket,id=a,host=h,port=1,path=x",
        "None or one of 'path', 'fd' or 'host' option required.",
      ],
      ["stdio,id=a,mux=on", "'mux' is not supported"],
    ];
    for (const [text, message] of cases) expect(() => parse(text)).toThrow(message);
  });

  test("lists kinds and keys", () => {
    for (const text of ["help", "?", "help,id=x"]) {
      expect(parseChardevOption(text, () => {})).toEqual({
        answer: {
          text: "Available chardev backend types: \n  file\n  stdio\n  socket\n  null\n  pipe\n",
          exitCode: 0,
        },
      });
    }
    const request = parseChardevOption("stdio,id=x,help", () => {});
    if (!("answer" in request)) throw new Error("no answer");
    expect(request.answer.exitCode).toBe(1);
    expect(request.answer.text).toMatch(/^chardev options:\n {2}abstract=<bool \(on\/off\)>\n/);
    expect(request.answer.text).toContain("  reconnect-ms=<num>\n");
  });

  test("finds the id as QSD does, and ignores keys of other kinds", () => {
    expect(() => parse("null,,id=x")).toThrow("'null,id=x' is not a valid char driver name");
    expect(parse("null,id=a,id=b,width=3")).toEqual({
      id: "a",
      backend: { type: "null", data: {} },
    });
    expect(() => parse("help,foo=1")).toThrow("Invalid parameter 'foo'");
  });
});
