/**
 * Cuts a byte stream into JSON tokens, whatever its chunks, in linear time. Thread: main.
 * A byte that fits nowhere is one ERROR token; then bytes are skipped up to the next structural
 * character or control byte, so that a client can always get back in step.
 * Spec: RFC 8259; QEMU qobject/json-lexer.c (single-quoted strings, recovery)
 */

export type TokenKind = "{" | "}" | "[" | "]" | ":" | "," | "string" | "number" | "keyword";

export interface TokenSink {
  /** `text` is the token's own bytes, quotes included; empty for structural ones. */
  onToken(kind: TokenKind, text: Uint8Array, line: number, column: number): void;
  /** `text` is what was read up to and with the byte that did not fit. */
  onStray(text: Uint8Array, line: number, column: number): void;
  /** One token is longer than what is allowed. */
  onTooLong(): void;
}

/** QEMU's limit for the text of all tokens of one value, so for one token too. */
export const TOKEN_BYTES_MAX = 64 * 1024 * 1024;

const START = 0;
const STRING = 1;
const STRING_ESCAPE = 2;
const KEYWORD = 3;
const MINUS = 4;
const ZERO = 5;
const INTEGER = 6;
const POINT = 7;
const FRACTION = 8;
const EXPONENT = 9;
const EXPONENT_SIGN = 10;
const EXPONENT_DIGITS = 11;
const RECOVERY = 12;
type State = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12;

/** What a byte did to the token in hand. */
const CONTINUES = 0;
/** The byte is the token's last. */
const ENDS = 1;
/** The byte is the first after the token. */
const ENDED = 2;
const STRAY = 3;

const LF = 0x0a;
const QUOTE = 0x22;
const APOSTROPHE = 0x27;
const BACKSLASH = 0x5c;
const NOTHING = new Uint8Array(0);

export class JsonLexer {
  #sink: TokenSink;
  #state: State = START;
  /** Next state, set by #step(). */
  #next: State = START;
  #quote = QUOTE;
  /** The byte in hand has ended a number or a keyword. */
  #endedToken = false;
  /** Bytes of the token in hand that came with earlier chunks. */
  #earlier: Uint8Array[] = [];
  #earlierBytes = 0;
  /** Of the byte in hand. */
  #line = 1;
  #column = 0;
  /** Where the token in hand began. */
  #tokenLine = 1;
  #tokenColumn = 0;

  constructor(sink: TokenSink) {
    this.#sink = sink;
  }

  get line(): number {
    return this.#line;
  }

  get column(): number {
    return this.#column;
  }

  /**
   * Takes bytes from `offset` on. Stops early after a token for which `stop` says so, and
   * returns the offset of the first byte not taken.
   */
  feed(bytes: Uint8Array, offset: number, stop: () => boolean): number {
    let tokenStart = offset;
    let index = offset;
    while (index < bytes.length) {
      const byte = bytes[index] as number;
      if (this.#state === START || this.#state === RECOVERY) {
        tokenStart = index;
        this.#between(byte);
        index += 1;
        if (stop()) return index;
        continue;
      }
      const outcome = this.#step(byte);
      if (outcome !== ENDED) {
        this.#advance(byte);
        index += 1;
      }
      if (outcome === CONTINUES) this.#state = this.#next;
      else this.#finish(outcome, bytes.subarray(tokenStart, index));
      if (outcome === CONTINUES && this.#earlierBytes + index - tokenStart > TOKEN_BYTES_MAX) {
        this.#drop();
        this.#sink.onTooLong();
      }
      if (outcome !== CONTINUES && stop()) return index;
    }
    if (this.#state !== START && this.#state !== RECOVERY) {
      this.#earlier.push(bytes.slice(tokenStart));
      this.#earlierBytes += bytes.length - tokenStart;
    }
    return bytes.length;
  }

  /** The input ends here: a number or keyword in hand is complete, a string is not. */
  flush(): void {
    if (this.#state === START || this.#state === RECOVERY) return;
    // A blank ends every token that can end.
    const outcome = this.#step(0x20);
    this.#finish(outcome === ENDED ? ENDED : STRAY, NOTHING);
  }

  /** A byte outside any token. */
  #between(byte: number): void {
    const recovering = this.#state === RECOVERY;
    // As QSD counts: a character that ends what was before it and begins a token counts twice.
    const twice = recovering || this.#endedToken;
    this.#endedToken = false;
    this.#advance(byte);
    const kind = structural(byte);
    if (recovering) {
      const reset = kind !== undefined || (byte < 0x20 && byte !== 0x09) || byte >= 0xfe;
      if (!reset) return;
      this.#state = START;
    }
    this.#tokenLine = this.#line;
    this.#tokenColumn = this.#column + (twice ? 1 : 0);
    if (kind !== undefined) {
      this.#sink.onToken(kind, NOTHING, this.#tokenLine, this.#tokenColumn);
    } else if (!isBlank(byte)) {
      this.#state = firstState(byte);
      this.#quote = byte;
      if (this.#state === RECOVERY) {
        this.#sink.onStray(Uint8Array.of(byte), this.#tokenLine, this.#tokenColumn);
      }
    }
  }

  #advance(byte: number): void {
    if (byte === LF) {
      this.#line += 1;
      this.#column = 0;
    } else this.#column += 1;
  }

  #finish(outcome: number, last: Uint8Array): void {
    const text = this.#earlier.length === 0 ? last : concatenate([...this.#earlier, last]);
    const state = this.#state;
    this.#drop();
    if (outcome === STRAY) {
      this.#sink.onStray(text, this.#tokenLine, this.#tokenColumn);
      return;
    }
    this.#state = START;
    this.#endedToken = outcome === ENDED;
    const kind = state === STRING ? "string" : state === KEYWORD ? "keyword" : "number";
    this.#sink.onToken(kind, text, this.#tokenLine, this.#tokenColumn);
  }

  #drop(): void {
    this.#earlier = [];
    this.#earlierBytes = 0;
    this.#state = RECOVERY;
  }

  /** What `byte` is to the token in hand; sets #next when it continues. */
  #step(byte: number): number {
    this.#next = this.#state;
    switch (this.#state) {
      case STRING:
        if (byte === this.#quote) return ENDS;
        if (byte === BACKSLASH) this.#next = STRING_ESCAPE;
        return byte < 0x20 || byte >= 0xfe ? STRAY : CONTINUES;
      case STRING_ESCAPE:
        this.#next = STRING;
        return byte < 0x20 || byte >= 0xfe ? STRAY : CONTINUES;
      case KEYWORD:
        return isLower(byte) ? CONTINUES : ENDED;
      default:
        return this.#stepNumber(byte);
    }
  }

  #stepNumber(byte: number): number {
    const digit = isDigit(byte);
    const exponent = byte === 0x65 || byte === 0x45;
    switch (this.#state) {
      case MINUS:
        this.#next = byte === 0x30 ? ZERO : INTEGER;
        return digit ? CONTINUES : STRAY;
      case ZERO:
        if (digit) return STRAY;
        return this.#afterDigits(byte, exponent);
      case INTEGER:
        return digit ? CONTINUES : this.#afterDigits(byte, exponent);
      case POINT:
        this.#next = FRACTION;
        return digit ? CONTINUES : STRAY;
      case FRACTION:
        if (digit) return CONTINUES;
        this.#next = EXPONENT;
        return exponent ? CONTINUES : ENDED;
      case EXPONENT:
        this.#next = digit ? EXPONENT_DIGITS : EXPONENT_SIGN;
        return digit || byte === 0x2b || byte === 0x2d ? CONTINUES : STRAY;
      case EXPONENT_SIGN:
        this.#next = EXPONENT_DIGITS;
        return digit ? CONTINUES : STRAY;
      default:
        return digit ? CONTINUES : ENDED;
    }
  }

  #afterDigits(byte: number, exponent: boolean): number {
    this.#next = exponent ? EXPONENT : POINT;
    return exponent || byte === 0x2e ? CONTINUES : ENDED;
  }
}

function firstState(byte: number): State {
  if (byte === QUOTE || byte === APOSTROPHE) return STRING;
  if (isLower(byte)) return KEYWORD;
  if (byte === 0x2d) return MINUS;
  if (byte === 0x30) return ZERO;
  return isDigit(byte) ? INTEGER : RECOVERY;
}

function structural(byte: number): TokenKind | undefined {
  switch (byte) {
    case 0x7b:
      return "{";
    case 0x7d:
      return "}";
    case 0x5b:
      return "[";
    case 0x5d:
      return "]";
    case 0x3a:
      return ":";
    case 0x2c:
      return ",";
  }
  return undefined;
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === LF || byte === 0x0d;
}

function isLower(byte: number): boolean {
  return byte >= 0x61 && byte <= 0x7a;
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39;
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((bytes, part) => bytes + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
