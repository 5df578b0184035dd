import { describe, expect, test } from "bun:test";
import { failureMessage, nbdError } from "../../../../src/exports/nbd/errors.ts";
import * as errno from "../../../../src/runtime/errno.ts";

describe("nbdError()", () => {
  test("has a value of the protocol for every errno", () => {
    const values = Array.from({ length: 134 }, (_, number) => nbdError(-number));
    expect(new Set(values)).toEqual(new Set([0, 22, 1, 5, 12, 28, 75, 95, 108]));
  });

  test("keeps what the protocol can tell apart", () => {
    const numbers = [errno.EROFS, errno.EPERM, errno.EDQUOT, errno.EFBIG, errno.ENOSPC];
    expect(numbers.map((number) => nbdError(-number))).toEqual([1, 1, 28, 28, 28]);
    const same = [errno.EIO, errno.ENOMEM, errno.EOVERFLOW, errno.ENOTSUP, errno.ESHUTDOWN];
    expect(same.map((number) => nbdError(-number))).toEqual(same);
    expect(nbdError(-errno.EBADF)).toBe(22);
  });
});

describe("failureMessage()", () => {
  test("has a text for each command that can fail", () => {
    const messages = [0, 1, 3, 4, 5, 6, 7].map((command) => failureMessage(command));
    expect(messages).toEqual([
      "reading from file failed",
      "writing to file failed",
      "flush failed",
      "discard failed",
      "caching data failed",
      "writing to file failed",
      "can't get block status",
    ]);
  });
});
