/** factsOfFailure(): where an error is, and what to do about it. */
import { expect, test } from "bun:test";
import { factsOfFailure, OptionError } from "../../../src/cli/option-error.ts";
import { OutportError } from "../../../src/util/error.ts";

test("factsOfFailure() names the option", () => {
  const error = new OutportError("invalid", "no");
  expect(factsOfFailure(error, "--object a")).toEqual({ option: "--object a" });
  expect(factsOfFailure(new Error("no"), "--object a")).toEqual({ option: "--object a" });
  expect(factsOfFailure(error, undefined)).toEqual({});
});

test("factsOfFailure() names the place that an error knows", () => {
  const error = new OptionError("io", "no", { file: "/x" });
  expect(factsOfFailure(error, "--trace events=/x")).toEqual({ file: "/x" });
});

test("factsOfFailure() repeats QSD's advice", () => {
  const error = new OutportError("invalid", "Parameter 'id' expects an identifier");
  expect(factsOfFailure(error, "--object 1")).toEqual({
    option: "--object 1",
    hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
  });
});

test("factsOfFailure() does not tell secrets", () => {
  const error = new OutportError("invalid", "no");
  const texts = [
    ["--object secret,id=s,data=hidden,x=1", "--object secret,id=s,data..."],
    ["--obj=secret,data=hidden", "--obj=secret,data..."],
    ['--object {"data": "hidden\nhidden"}', '--object {"data...'],
    ["--blockdev file,filename=/data/x", "--blockdev file,filename=/data/x"],
  ] as const;
  for (const [text, option] of texts) expect(factsOfFailure(error, text)).toEqual({ option });
});
