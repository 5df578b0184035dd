/**
 * Parses a stream of JSON values, in any chunks and with nothing needed between them. Thread: main.
 * After an error it goes on with the next value. Integers beyond 2^53 are bigint as long as they
 * fit 64 bits, and doubles beyond that; 1.0 is a Double.
 * Spec: QEMU qobject/json-streamer.c, qobject/json-parser.c
 */
import { Double } from "../qapi/numbers.ts";
import { OutportError } from "../util/error.ts";
import { JsonLexer, TOKEN_BYTES_MAX, type TokenKind } from "./json-lexer.ts";
import { BadString, decodeString } from "./json-string.ts";

export interface JsonSink {
  onValue(value: unknown): void;
  /** `message` says where and what, in QSD's words. */
  onError(message: string): void;
}

/** QEMU's limits for one value. */
const TOKENS_MAX = 2 * 1024 * 1024;
const NESTING_MAX = 1024;
/** Of a stray token in a message. */
const SHOWN_BYTES_MAX = 1024;
/** A sign and the digits of 2^64. */
const INTEGER_LENGTH_MAX = 21;

/** Makes a message for the token in hand. */
type Wrong = (what: string) => string;

/** An open array or object, and what may come next in it. */
interface Frame {
  readonly value: unknown[] | Record<string, unknown>;
  key: string;
  expect: "value" | "first" | "key" | "colon" | "separator";
}

const lossy = new TextDecoder("utf-8", { ignoreBOM: true });

export class JsonStream {
  /** Set by the sink to stop feed() after the value in hand; it stays until the sink clears it. */
  paused = false;
  #sink: JsonSink;
  #lexer: JsonLexer;
  #stack: Frame[] = [];
  /** Counted apart, as QEMU does: a value ends when either is negative or both are zero. */
  #braces = 0;
  #brackets = 0;
  #tokens = 0;
  #tokenBytes = 0;
  /** The value in hand is wrong; its remaining tokens are only counted. */
  #skipping = false;

  constructor(sink: JsonSink) {
    this.#sink = sink;
    this.#lexer = new JsonLexer({
      onToken: (kind, text, line, column) => this.#onToken(kind, text, line, column),
      onStray: (text, line, column) => {
        const shown = lossy.decode(text.subarray(0, SHOWN_BYTES_MAX)).split("\0")[0];
        // One value is wrong once.
        const skipping = this.#skipping;
        this.#reset();
        if (!skipping) this.#fail(line, column, `stray '${shown}'`);
      },
      onTooLong: () => {
        this.#reset();
        sink.onError("JSON token size limit exceeded");
      },
    });
  }

  /** Returns the offset of the first byte not taken: less than the length when paused. */
  feed(bytes: Uint8Array, offset = 0): number {
    return this.#lexer.feed(bytes, offset, () => this.paused);
  }

  /** The input ends: an incomplete value is an error. */
  flush(): void {
    this.#lexer.flush();
    if (this.#braces + this.#brackets === 0) return;
    const skipping = this.#skipping;
    this.#reset();
    if (skipping) return;
    this.#fail(this.#lexer.line, this.#lexer.column + 1, "premature end of input");
  }

  #onToken(kind: TokenKind, text: Uint8Array, line: number, column: number): void {
    this.#count(kind, text.length);
    if (!this.#skipping) {
      const problem = this.#overLimit() ?? this.#accept(kind, text, line, column);
      if (problem !== undefined) {
        this.#skipping = true;
        this.#sink.onError(problem);
      }
    }
    const open = this.#braces > 0 || this.#brackets > 0;
    if (this.#braces < 0 || this.#brackets < 0 || !open) this.#reset();
  }

  #count(kind: TokenKind, bytes: number): void {
    if (kind === "{") this.#braces += 1;
    else if (kind === "}") this.#braces -= 1;
    else if (kind === "[") this.#brackets += 1;
    else if (kind === "]") this.#brackets -= 1;
    this.#tokens += 1;
    this.#tokenBytes += Math.max(1, bytes);
  }

  #overLimit(): string | undefined {
    if (this.#tokenBytes > TOKEN_BYTES_MAX) return "JSON token size limit exceeded";
    if (this.#tokens > TOKENS_MAX) return "JSON token count limit exceeded";
    if (this.#braces + this.#brackets > NESTING_MAX) return "JSON nesting depth limit exceeded";
    return undefined;
  }

  #reset(): void {
    this.#stack = [];
    this.#braces = 0;
    this.#brackets = 0;
    this.#tokens = 0;
    this.#tokenBytes = 0;
    this.#skipping = false;
  }

  #fail(line: number, column: number, what: string): void {
    this.#sink.onError(message(line, column, what));
  }

  /** Puts the token where it belongs; returns what is wrong when it belongs nowhere. */
  #accept(kind: TokenKind, text: Uint8Array, line: number, column: number): string | undefined {
    const frame = this.#stack.at(-1);
    const wrong: Wrong = (what) => message(line, column, what);
    switch (frame?.expect) {
      case "separator":
        return this.#acceptSeparator(frame, kind, wrong);
      case "colon":
        if (kind !== ":") return wrong("expecting ':'");
        frame.expect = "value";
        return undefined;
      case "first":
        if (kind === (Array.isArray(frame.value) ? "]" : "}")) return this.#close(wrong);
        break;
    }
    const wantsKey = frame !== undefined && !Array.isArray(frame.value) && frame.expect !== "value";
    if (wantsKey && kind !== "string") return wrong("expecting key");
    try {
      if (!wantsKey) return this.#acceptValue(kind, text, wrong);
      frame.key = decodeString(text);
      frame.expect = "colon";
      return undefined;
    } catch (error) {
      if (error instanceof BadString) return wrong(error.message);
      throw error;
    }
  }

  #acceptSeparator(frame: Frame, kind: TokenKind, wrong: Wrong): string | undefined {
    const end = Array.isArray(frame.value) ? "]" : "}";
    if (kind === end) return this.#close(wrong);
    if (kind !== ",") return wrong(`expected ',' or '${end}'`);
    frame.expect = Array.isArray(frame.value) ? "value" : "key";
    return undefined;
  }

  #acceptValue(kind: TokenKind, text: Uint8Array, wrong: Wrong): string | undefined {
    switch (kind) {
      case "{":
        this.#stack.push({ value: {}, key: "", expect: "first" });
        return undefined;
      case "[":
        this.#stack.push({ value: [], key: "", expect: "first" });
        return undefined;
      case "string":
        return this.#put(decodeString(text), wrong);
      case "number":
        return this.#put(decodeNumber(lossy.decode(text)), wrong);
      case "keyword": {
        const word = lossy.decode(text.subarray(0, SHOWN_BYTES_MAX));
        if (word !== "true" && word !== "false" && word !== "null") {
          return wrong(`invalid keyword '${word}'`);
        }
        return this.#put(word === "null" ? null : word === "true", wrong);
      }
    }
    return wrong("expecting value");
  }

  #close(wrong: Wrong): string | undefined {
    const frame = this.#stack.pop() as Frame;
    return this.#put(frame.value, wrong);
  }

  #put(value: unknown, wrong: Wrong): string | undefined {
    const frame = this.#stack.at(-1);
    if (frame === undefined) this.#sink.onValue(value);
    else if (Array.isArray(frame.value)) frame.value.push(value);
    else if (Object.hasOwn(frame.value, frame.key)) return wrong("duplicate key");
    else setMember(frame.value, frame.key, value);
    if (frame !== undefined) frame.expect = "separator";
    return undefined;
  }
}

/** Also for "__proto__", which an assignment would not make a member. */
function setMember(target: Record<string, unknown>, key: string, value: unknown): void {
  if (key !== "__proto__") {
    target[key] = value;
    return;
  }
  const attributes = { value, enumerable: true, writable: true, configurable: true };
  Object.defineProperty(target, key, attributes);
}

function message(line: number, column: number, what: string): string {
  return `${line}:${column}: JSON parse error, ${what}`;
}

function decodeNumber(text: string): number | bigint | Double {
  const value = Number(text);
  const isInteger = /^-?[0-9]+$/.test(text);
  if (Number.isSafeInteger(value)) {
    if (!isInteger) return new Double(value);
    return value === 0 ? 0 : value;
  }
  // Digits by the million would take seconds.
  if (!isInteger || text.length > INTEGER_LENGTH_MAX) return value;
  const exact = BigInt(text);
  return exact >= -(2n ** 63n) && exact < 2n ** 64n ? exact : value;
}

/** The one value in `text`, as options have it. Throws an OutportError. */
export function parseJson(text: string): unknown {
  const values: unknown[] = [];
  const problems: string[] = [];
  const stream = new JsonStream({
    onValue: (value) => values.push(value),
    onError: (problem) => problems.push(problem),
  });
  stream.feed(new TextEncoder().encode(text));
  stream.flush();
  const [problem] = problems;
  if (values.length > 1 || (values.length === 1 && problem !== undefined)) {
    throw new OutportError("invalid", "Expecting at most one JSON value");
  }
  if (problem !== undefined) throw new OutportError("invalid", problem);
  if (values.length === 0) throw new OutportError("invalid", "Expecting a JSON value");
  return values[0];
}
