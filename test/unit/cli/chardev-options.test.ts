/** parseChardev(): words of QSD. */
import { describe, expect, test } from "bun:test";
import { parseChardev } from "../../../src/cli/chardev-options.ts";

describe("parseChardev()", () => {
  test("reads the address and role of a socket", () => {
    expect(parseChardev("socket,id=a,path=/x,,y,server=on,wait=off")).toEqual({
      id: "a",
      backend: "socket",
      address: { type: "unix", path: "/x,y" },
      label: "/x,y",
      server: true,
      wait: false,
    });
    expect(parseChardev("socket,id=a,path=x,abstract=on")).toMatchObject({
      address: { type: "unix", path: "\0x" },
      server: false,
    });
    expect(parseChardev("socket,id=a,host=localhost,port=70,server,nowait")).toMatchObject({
      address: { type: "inet", host: "localhost", port: 70 },
      label: "localhost:70",
      server: true,
      wait: false,
    });
    expect(parseChardev("socket,id=a,fd=3,server=on")).toMatchObject({
      address: { type: "fd", fd: 3 },
      wait: true,
    });
  });

  test("reads stdio", () => {
    expect(parseChardev("stdio,id=a,signal=off")).toEqual({ id: "a", backend: "stdio" });
  });

  test("refuses what is wrong in QSD's words", () => {
    const cases: [string, string][] = [
      ["foo", "chardev: no id specified"],
      ["", "chardev: no id specified"],
      ["id=a", 'chardev: "a" missing backend'],
      ["foo,id=a", "'foo' is not a valid char driver name"],
      ["socket,id=9", "Parameter 'id' expects an identifier"],
      ["socket,id=a", "Unable to parse FD number "],
      ["socket,id=a,fd=x", "Unable to parse FD number x"],
      ["socket,id=a,path=x,foo=1", "Invalid parameter 'foo'"],
      ["socket,id=a,path=x,server=zz", "Parameter 'server' expects 'on' or 'off'"],
      ["socket,id=a,host=h,server=on", "chardev: socket: no port given"],
      [
        "socket,id=a,host=h,port=1,path=x",
        "None or one of 'path', 'fd' or 'host' option required.",
      ],
      [
        "socket,id=a,path=x,wait=off",
        "'wait' option is incompatible with socket in client connect mode",
      ],
      [
        "socket,id=a,host=h,port=x",
        "address resolution failed for h:x: Servname not supported for ai_socktype",
      ],
    ];
    for (const [text, message] of cases) expect(() => parseChardev(text)).toThrow(message);
  });

  test("refuses features that are not there", () => {
    expect(() => parseChardev("socket,id=a,path=x,telnet=on")).toThrow("'telnet' is not supported");
  });
});
