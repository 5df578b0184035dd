/**
 * `bun:test` for Deno, as far as our tests use it: deno.json maps the name to this file.
 * Each test becomes one Deno test named "describe > test", so that both runtimes count the same.
 */

import { expect } from "expect";

export { expect };

type Hook = () => unknown;
type Body = (done?: never) => unknown;

interface Scope {
  readonly name: string;
  readonly parent: Scope | undefined;
  readonly beforeAll: Hook[];
  readonly afterAll: Hook[];
  readonly beforeEach: Hook[];
  readonly afterEach: Hook[];
  /** Tests in this scope and below that have not ended. */
  testsLeft: number;
  begun: boolean;
}

/** The part of Deno's global that this file needs. */
interface DenoTest {
  test(definition: {
    name: string;
    ignore: boolean;
    sanitizeOps: boolean;
    sanitizeResources: boolean;
    sanitizeExit: boolean;
    fn: () => Promise<void>;
  }): void;
}
const { Deno } = globalThis as unknown as { Deno: DenoTest };

let timeoutMsDefault = 60_000;
let scope = newScope("", undefined);

function newScope(name: string, parent: Scope | undefined): Scope {
  return {
    name,
    parent,
    beforeAll: [],
    afterAll: [],
    beforeEach: [],
    afterEach: [],
    testsLeft: 0,
    begun: false,
  };
}

/** From the file's own scope to `inner`. */
function path(inner: Scope): Scope[] {
  const scopes: Scope[] = [];
  for (let at: Scope | undefined = inner; at !== undefined; at = at.parent) scopes.unshift(at);
  return scopes;
}

async function runAll(hooks: readonly Hook[]): Promise<void> {
  for (const hook of hooks) await withTimeout("A hook", hook, timeoutMsDefault);
}

async function withTimeout(what: string, body: Body, timeoutMs: number): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    const message = `${what} timed out after ${timeoutMs} ms`;
    timer = setTimeout(() => reject(new Error(message)), timeoutMs);
  });
  try {
    await Promise.race([body(), late]);
  } finally {
    clearTimeout(timer);
  }
}

async function runTest(scopes: readonly Scope[], body: Body, timeoutMs: number): Promise<void> {
  const inwards = [...scopes];
  const outwards = inwards.toReversed();
  try {
    for (const each of inwards) {
      if (each.begun) continue;
      each.begun = true;
      await runAll(each.beforeAll);
    }
    for (const each of inwards) await runAll(each.beforeEach);
    await withTimeout("Test", body, timeoutMs);
  } finally {
    for (const each of outwards) await runAll(each.afterEach);
    for (const each of outwards) {
      each.testsLeft -= 1;
      if (each.testsLeft === 0) await runAll(each.afterAll);
    }
  }
}

function register(name: string, body: Body, timeoutMs: number | undefined, ignore: boolean): void {
  const scopes = path(scope);
  if (!ignore) for (const each of scopes) each.testsLeft += 1;
  Deno.test({
    name: [...scopes.map((each) => each.name), name].filter((part) => part !== "").join(" > "),
    ignore,
    sanitizeOps: false,
    sanitizeResources: false,
    sanitizeExit: false,
    fn: () => runTest(scopes, body, timeoutMs ?? timeoutMsDefault),
  });
}

export function describe(name: string, body: () => void): void {
  const outer = scope;
  scope = newScope(name, outer);
  try {
    body();
  } finally {
    scope = outer;
  }
}

export function test(name: string, body: Body, timeoutMs?: number): void {
  register(name, body, timeoutMs, false);
}

test.skipIf = (condition: boolean) => (name: string, body: Body, timeoutMs?: number) =>
  register(name, body, timeoutMs, condition);

export function beforeAll(hook: Hook): void {
  scope.beforeAll.push(hook);
}

export function afterAll(hook: Hook): void {
  scope.afterAll.push(hook);
}

export function beforeEach(hook: Hook): void {
  scope.beforeEach.push(hook);
}

export function afterEach(hook: Hook): void {
  scope.afterEach.push(hook);
}

export function setDefaultTimeout(timeoutMs: number): void {
  timeoutMsDefault = timeoutMs;
}
