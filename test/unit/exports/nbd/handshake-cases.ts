/**
 * What clients may send after the greeting, well-formed and not. The replies of QSD 11.1.3 to each
 * are in qsd-handshake.json, for the exports that handshake.test.ts offers.
 */
import {
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
} from "../../../../src/abi/nbd.ts";
import {
  bytesOf,
  concat,
  infoData,
  lengthString,
  metaData,
  option,
  u16,
  u32,
} from "../../../support/nbd-wire.ts";

const NO_FLAGS = u32(0);
const FIXED = u32(NBD_FLAG_C_FIXED_NEWSTYLE);
const NO_ZEROES = u32(NBD_FLAG_C_NO_ZEROES);
const FIXED_NO_ZEROES = u32(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
const NAME_79 = "x".repeat(79);
const NAME_80 = "x".repeat(80);
const LONGEST = "y".repeat(4096);
const STRUCTURED = option(NBD_OPT_STRUCTURED_REPLY);
const EXTENDED = option(NBD_OPT_EXTENDED_HEADERS);
const ABORT = option(NBD_OPT_ABORT);
const LIST = option(NBD_OPT_LIST);
const go = (name: string, infos: number[] = [3]) => option(NBD_OPT_GO, infoData(name, infos));
const info = (name: string, infos: number[] = [3]) => option(NBD_OPT_INFO, infoData(name, infos));
const set = (name: string, queries: string[]) =>
  option(NBD_OPT_SET_META_CONTEXT, metaData(name, queries));
const lst = (name: string, queries: string[]) =>
  option(NBD_OPT_LIST_META_CONTEXT, metaData(name, queries));

export const CASES: readonly (readonly [name: string, sent: Uint8Array])[] = [
  ["greeting only", new Uint8Array(0)],
  ["unknown client flags", concat(u32(8), LIST)],
  ["unknown client flags with known ones", concat(u32(0x80000007), LIST)],
  ["bad option magic", concat(FIXED_NO_ZEROES, u32(0x49484156), u32(0x454f5055), u32(3), u32(0))],
  [
    "option longer than 32 MiB",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_LIST, new Uint8Array(0), 33554433)),
  ],
  ["LIST", concat(FIXED_NO_ZEROES, LIST)],
  ["LIST with data", concat(FIXED_NO_ZEROES, option(NBD_OPT_LIST, bytesOf("abc")), LIST)],
  ["LIST without fixed newstyle", concat(NO_FLAGS, LIST)],
  ["ABORT", concat(FIXED_NO_ZEROES, ABORT, LIST)],
  ["ABORT with data", concat(FIXED_NO_ZEROES, option(NBD_OPT_ABORT, bytesOf("xyz")))],
  ["ABORT without fixed newstyle", concat(NO_ZEROES, ABORT)],
  ["EXPORT_NAME", concat(FIXED_NO_ZEROES, option(NBD_OPT_EXPORT_NAME, bytesOf("disk")))],
  ["EXPORT_NAME with zeroes", concat(FIXED, option(NBD_OPT_EXPORT_NAME, bytesOf("disk")))],
  [
    "EXPORT_NAME without fixed newstyle",
    concat(NO_FLAGS, option(NBD_OPT_EXPORT_NAME, bytesOf("disk"))),
  ],
  [
    "EXPORT_NAME without fixed newstyle, no zeroes",
    concat(NO_ZEROES, option(NBD_OPT_EXPORT_NAME, bytesOf("disk"))),
  ],
  ["EXPORT_NAME of the default export", concat(FIXED_NO_ZEROES, option(NBD_OPT_EXPORT_NAME))],
  [
    "EXPORT_NAME with a NUL",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_EXPORT_NAME, bytesOf("disk\0x"))),
  ],
  ["EXPORT_NAME unknown", concat(FIXED_NO_ZEROES, option(NBD_OPT_EXPORT_NAME, bytesOf("nope")))],
  [
    "EXPORT_NAME too long",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_EXPORT_NAME, bytesOf(LONGEST + "y"))),
  ],
  [
    "EXPORT_NAME after structured replies",
    concat(FIXED_NO_ZEROES, STRUCTURED, option(NBD_OPT_EXPORT_NAME, bytesOf("disk"))),
  ],
  [
    "EXPORT_NAME after extended headers",
    concat(FIXED_NO_ZEROES, EXTENDED, option(NBD_OPT_EXPORT_NAME, bytesOf("disk"))),
  ],
  [
    "EXPORT_NAME after contexts",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      set("disk", ["base:allocation"]),
      option(NBD_OPT_EXPORT_NAME, bytesOf("disk")),
    ),
  ],
  ["unknown option", concat(FIXED_NO_ZEROES, option(99), option(98, bytesOf("hello")), LIST)],
  ["PEEK_EXPORT", concat(FIXED_NO_ZEROES, option(4))],
  ["option 0 and the largest", concat(FIXED_NO_ZEROES, option(0), option(0xffffffff))],
  [
    "STARTTLS",
    concat(
      FIXED_NO_ZEROES,
      option(NBD_OPT_STARTTLS),
      option(NBD_OPT_STARTTLS, bytesOf("x")),
      option(NBD_OPT_STARTTLS),
    ),
  ],
  ["STRUCTURED_REPLY twice", concat(FIXED_NO_ZEROES, STRUCTURED, STRUCTURED)],
  [
    "STRUCTURED_REPLY with data",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_STRUCTURED_REPLY, u32(1)), STRUCTURED),
  ],
  ["EXTENDED_HEADERS twice", concat(FIXED_NO_ZEROES, EXTENDED, EXTENDED)],
  [
    "EXTENDED_HEADERS with data",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_EXTENDED_HEADERS, u32(1)), EXTENDED),
  ],
  ["STRUCTURED_REPLY after EXTENDED_HEADERS", concat(FIXED_NO_ZEROES, EXTENDED, STRUCTURED)],
  [
    "EXTENDED_HEADERS after STRUCTURED_REPLY",
    concat(FIXED_NO_ZEROES, STRUCTURED, EXTENDED, go("disk")),
  ],
  ["GO", concat(FIXED_NO_ZEROES, go("disk"))],
  ["GO without infos", concat(FIXED_NO_ZEROES, go("disk", []))],
  ["GO with name and unknown infos", concat(FIXED_NO_ZEROES, go("disk", [1, 77, 2, 0, 3]))],
  ["GO of the default export", concat(FIXED_NO_ZEROES, go("", [1]))],
  ["GO structured", concat(FIXED_NO_ZEROES, STRUCTURED, go("disk"))],
  ["GO extended", concat(FIXED_NO_ZEROES, EXTENDED, go("disk"))],
  [
    "GO extended with contexts",
    concat(FIXED_NO_ZEROES, EXTENDED, set("disk", ["base:allocation"]), go("disk")),
  ],
  [
    "GO structured with contexts",
    concat(FIXED_NO_ZEROES, STRUCTURED, set("disk", ["base:allocation"]), go("disk")),
  ],
  [
    "GO read-only extended",
    concat(FIXED_NO_ZEROES, EXTENDED, set("", ["base:allocation"]), go("")),
  ],
  [
    "GO after contexts of another export",
    concat(FIXED_NO_ZEROES, EXTENDED, set("maps", ["base:allocation"]), go("disk")),
  ],
  ["GO direct without block size", concat(FIXED_NO_ZEROES, go("direct", []))],
  ["GO direct with block size", concat(FIXED_NO_ZEROES, go("direct", [3]))],
  ["GO with an empty description", concat(FIXED_NO_ZEROES, go("maps"))],
  ["GO unknown, then known", concat(FIXED_NO_ZEROES, go("nope"), go("disk"))],
  ["GO unknown, 79 bytes", concat(FIXED_NO_ZEROES, go(NAME_79))],
  ["GO unknown, 80 bytes", concat(FIXED_NO_ZEROES, go(NAME_80))],
  ["GO unknown, 4096 bytes", concat(FIXED_NO_ZEROES, go(LONGEST))],
  [
    "GO unknown, not UTF-8",
    concat(
      FIXED_NO_ZEROES,
      option(NBD_OPT_GO, concat(u32(3), new Uint8Array([0xff, 0x41, 0xfe]), u16(0))),
    ),
  ],
  [
    "GO name too long",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_GO, concat(u32(5000), new Uint8Array(5002))), LIST),
  ],
  [
    "GO name length beyond the data",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_GO, concat(u32(100), bytesOf("disk"), u16(0))), ABORT),
  ],
  ["GO name with NUL", concat(FIXED_NO_ZEROES, option(NBD_OPT_GO, infoData("di\0k")), ABORT)],
  ["GO without data", concat(FIXED_NO_ZEROES, option(NBD_OPT_GO), ABORT)],
  ["GO with two bytes", concat(FIXED_NO_ZEROES, option(NBD_OPT_GO, u16(0)), ABORT)],
  ["GO without a count", concat(FIXED_NO_ZEROES, option(NBD_OPT_GO, lengthString("disk")), ABORT)],
  [
    "GO count beyond the data",
    concat(
      FIXED_NO_ZEROES,
      option(NBD_OPT_GO, concat(lengthString("disk"), u16(3), u16(0))),
      ABORT,
    ),
  ],
  [
    "GO with bytes after",
    concat(FIXED_NO_ZEROES, option(NBD_OPT_GO, concat(infoData("disk"), u16(0))), ABORT),
  ],
  ["INFO", concat(FIXED_NO_ZEROES, info("disk"), info("direct"))],
  [
    "INFO without block size",
    concat(FIXED_NO_ZEROES, info("disk", []), info("direct", []), info("", [1])),
  ],
  ["INFO extended", concat(FIXED_NO_ZEROES, EXTENDED, info("disk"), info(""))],
  ["INFO name with NUL", concat(FIXED_NO_ZEROES, option(NBD_OPT_INFO, infoData("a\0b")), ABORT)],
  ["INFO unknown", concat(FIXED_NO_ZEROES, info("nope"), ABORT)],
  ["LIST_META_CONTEXT all", concat(FIXED_NO_ZEROES, lst("disk", []), lst("maps", []))],
  ["LIST_META_CONTEXT structured", concat(FIXED_NO_ZEROES, STRUCTURED, lst("maps", []))],
  [
    "LIST_META_CONTEXT wildcards",
    concat(
      FIXED_NO_ZEROES,
      lst("maps", ["base:"]),
      lst("maps", ["qemu:"]),
      lst("maps", ["qemu:dirty-bitmap:"]),
      lst("disk", ["qemu:"]),
      lst("maps", ["qemu:dirty-bitmap:bm"]),
      lst("maps", ["qemu", "", "base", "other:"]),
    ),
  ],
  [
    "LIST_META_CONTEXT by name",
    concat(
      FIXED_NO_ZEROES,
      lst("maps", [
        "qemu:dirty-bitmap:bm1",
        "base:allocation",
        "x:y",
        "qemu:dirty-bitmap:nope",
        "qemu:nope",
      ]),
    ),
  ],
  [
    "LIST_META_CONTEXT unknown export",
    concat(FIXED_NO_ZEROES, lst("nope", ["base:allocation"]), ABORT),
  ],
  ["SET_META_CONTEXT simple", concat(FIXED_NO_ZEROES, set("disk", ["base:allocation"]), ABORT)],
  [
    "SET_META_CONTEXT",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      set("maps", ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:bm1"]),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT ids with gaps",
    concat(FIXED_NO_ZEROES, STRUCTURED, set("maps", ["qemu:dirty-bitmap:bm1"]), go("maps")),
  ],
  [
    "SET_META_CONTEXT twice the same",
    concat(FIXED_NO_ZEROES, STRUCTURED, set("maps", ["base:allocation", "base:allocation"]), ABORT),
  ],
  [
    "SET_META_CONTEXT wildcards",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      set("maps", ["base:"]),
      set("maps", ["qemu:"]),
      set("maps", ["qemu:dirty-bitmap:"]),
      set("maps", [""]),
    ),
  ],
  [
    "SET_META_CONTEXT depth not offered",
    concat(FIXED_NO_ZEROES, STRUCTURED, set("disk", ["qemu:allocation-depth"])),
  ],
  ["SET_META_CONTEXT none", concat(FIXED_NO_ZEROES, EXTENDED, set("disk", []), go("disk"))],
  [
    "SET_META_CONTEXT again with none",
    concat(
      FIXED_NO_ZEROES,
      EXTENDED,
      set("disk", ["base:allocation"]),
      set("disk", []),
      go("disk"),
    ),
  ],
  [
    "SET_META_CONTEXT failing clears",
    concat(
      FIXED_NO_ZEROES,
      EXTENDED,
      set("disk", ["base:allocation"]),
      set("nope", []),
      go("disk"),
    ),
  ],
  [
    "SET_META_CONTEXT malformed clears",
    concat(
      FIXED_NO_ZEROES,
      EXTENDED,
      set("disk", ["base:allocation"]),
      option(NBD_OPT_SET_META_CONTEXT, u16(0)),
      go("disk"),
    ),
  ],
  [
    "SET_META_CONTEXT unknown export",
    concat(FIXED_NO_ZEROES, STRUCTURED, set("nope", ["base:allocation"]), ABORT),
  ],
  [
    "SET_META_CONTEXT long query",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      set("disk", [LONGEST + "z", "base:allocation", LONGEST]),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT query with NUL",
    concat(FIXED_NO_ZEROES, STRUCTURED, set("disk", ["base:\0allocation"]), ABORT),
  ],
  [
    "SET_META_CONTEXT count beyond the data",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      option(
        NBD_OPT_SET_META_CONTEXT,
        concat(lengthString("disk"), u32(2), lengthString("base:allocation")),
      ),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT query beyond the data",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      option(
        NBD_OPT_SET_META_CONTEXT,
        concat(lengthString("disk"), u32(1), u32(100), bytesOf("base:")),
      ),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT long query beyond the data",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      option(
        NBD_OPT_SET_META_CONTEXT,
        concat(lengthString("disk"), u32(1), u32(5000), bytesOf("base:")),
      ),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT without data",
    concat(FIXED_NO_ZEROES, STRUCTURED, option(NBD_OPT_SET_META_CONTEXT), ABORT),
  ],
  [
    "SET_META_CONTEXT name too long",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      option(NBD_OPT_SET_META_CONTEXT, concat(u32(4097), new Uint8Array(4200))),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT without a count",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      option(NBD_OPT_SET_META_CONTEXT, lengthString("disk")),
      ABORT,
    ),
  ],
  [
    "SET_META_CONTEXT with bytes after",
    concat(
      FIXED_NO_ZEROES,
      STRUCTURED,
      option(NBD_OPT_SET_META_CONTEXT, concat(metaData("disk", ["base:allocation"]), u32(0))),
      go("disk"),
    ),
  ],
  [
    "LIST_META_CONTEXT with bytes after",
    concat(
      FIXED_NO_ZEROES,
      option(NBD_OPT_LIST_META_CONTEXT, concat(metaData("disk", []), u16(1))),
      LIST,
    ),
  ],
  ["option of 9000 bytes", concat(FIXED_NO_ZEROES, option(1000, new Uint8Array(9000)), LIST)],
];
