/** luks-header, luks-layout, luks-create, luks-lock, luks-info and passphrase. */
import { beforeAll, describe, expect, test } from "bun:test";
import * as abi from "../../../src/abi/luks.ts";
import { type LuksCreateOptions, luksKeyBytes, makeLuks } from "../../../src/crypto/luks-create.ts";
import { ITERATIONS_MAX, parseLuksHeader } from "../../../src/crypto/luks-header.ts";
import { luksInfo } from "../../../src/crypto/luks-info.ts";
import { payloadOffset, slotOffset } from "../../../src/crypto/luks-layout.ts";
import { readLuksLock, unlockLuks } from "../../../src/crypto/luks-lock.ts";
import { passphraseOf } from "../../../src/crypto/passphrase.ts";
import { iterationsPerSecond } from "../../../src/crypto/pbkdf2.ts";
import { OutportError } from "../../../src/util/error.ts";

const text = (value: string) => new TextEncoder().encode(value);
const PASSPHRASE = text("open sesame");
const FAST = { "iter-time": 0 };

let area: Uint8Array<ArrayBuffer>;
let masterKey: Uint8Array;
beforeAll(async () => {
  ({ area, masterKey } = await makeLuks(FAST, PASSPHRASE));
});

const readerOf = (volume: Uint8Array) => async (offset: number, bytes: number) => {
  if (offset + bytes > volume.length) throw new OutportError("io", "behind the end");
  return volume.slice(offset, offset + bytes);
};

async function open(volume: Uint8Array, passphrase = PASSPHRASE): Promise<Uint8Array> {
  return unlockLuks(await readLuksLock(readerOf(volume)), passphrase);
}

/** A header with some u32 or texts changed. */
function changed(...changes: readonly (readonly [number, number | string])[]): Uint8Array {
  const header = area.slice(0, abi.LUKS_HEADER_BYTES);
  for (const [at, value] of changes) {
    if (typeof value === "number") new DataView(header.buffer).setUint32(at, value);
    else header.set([...text(value), 0], at);
  }
  return header;
}

const slotAt = (i: number, field: number) =>
  abi.LUKS_HEADER_KEY_SLOTS + i * abi.LUKS_SLOT_BYTES + field;

function complaintOf(header: Uint8Array): string {
  try {
    parseLuksHeader(header);
    return "";
  } catch (error) {
    if (error instanceof OutportError) return error.message;
    throw error;
  }
}

describe("makeLuks()", () => {
  test("makes a volume that its passphrase opens, and no other", async () => {
    expect(await open(area)).toEqual(masterKey);
    expect(open(area, text("open sesam"))).rejects.toThrow(
      "Invalid password, cannot unlock any keyslot",
    );
  });

  const kinds: LuksCreateOptions[] = [
    { "cipher-alg": "aes-128", "hash-alg": "sha1" },
    { "cipher-alg": "aes-256", "hash-alg": "sha512", "ivgen-hash-alg": "sha1" },
  ];
  for (const kind of kinds) {
    test(`does so with ${kind["cipher-alg"]} and ${kind["hash-alg"]}`, async () => {
      const made = await makeLuks({ ...FAST, ...kind }, new Uint8Array(0));
      const keyBytes = luksKeyBytes(kind);
      expect(made.masterKey.length).toBe(keyBytes);
      expect(made.area.length).toBe(slotOffset(keyBytes, 0) + keyBytes * 4000);
      expect(await open(made.area, new Uint8Array(0))).toEqual(made.masterKey);
    });
  }

  test("lays volumes out as QEMU does", () => {
    expect([slotOffset(64, 0), slotOffset(64, 7), payloadOffset(64)]).toEqual([
      4096, 1_810_432, 2_068_480,
    ]);
    const { slots, uuid, ...info } = luksInfo(parseLuksHeader(area)) as Record<string, unknown>;
    expect(info).toEqual({
      "cipher-alg": "aes-256",
      "cipher-mode": "xts",
      "ivgen-alg": "plain64",
      "hash-alg": "sha256",
      "detached-header": false,
      "payload-offset": 2_068_480,
      "master-key-iters": 1000,
    });
    expect((slots as unknown[])[0]).toEqual({
      ...{ active: true, iters: 1000, stripes: 4000, "key-offset": 4096 },
    });
    expect((slots as unknown[])[1]).toEqual({ active: false, "key-offset": 262_144 });
    expect(uuid).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  });

  test("refuses what can't be opened here", async () => {
    const refuse = async (options: LuksCreateOptions, message: string) => {
      await expect(makeLuks(options, PASSPHRASE)).rejects.toThrow(message);
    };
    await refuse({ "cipher-alg": "serpent-256" }, "Algorithm 'serpent-256' not supported");
    await refuse({ "cipher-mode": "cbc" }, "Unsupported cipher mode cbc");
    await refuse({ "ivgen-alg": "essiv" }, "IV generator 'essiv' not supported");
    await refuse({ "hash-alg": "md5" }, "PBKDF does not support hash algorithm md5");
    await refuse({ "iter-time": -1 }, "too large to scale: Numerical result out of range");
    await refuse({ "iter-time": 1e9 }, `larger than ${ITERATIONS_MAX}: Numerical result`);
  });
});

describe("unlockLuks()", () => {
  test("tries all slots in use", async () => {
    const other = await makeLuks(FAST, text("another"));
    // Slot 0 of another volume in front: its key opens nothing here.
    const volume = new Uint8Array(slotOffset(64, 2));
    volume.set(other.area);
    volume.set(area.subarray(0, abi.LUKS_HEADER_BYTES));
    volume.set(area.subarray(slotOffset(64, 0)), slotOffset(64, 1));
    const [first, second] = [slotAt(0, 0), slotAt(1, 0)];
    const offset = abi.LUKS_SLOT_KEY_MATERIAL_OFFSET;
    volume.set(area.subarray(first, first + offset), second);
    expect(await open(volume)).toEqual(masterKey);
  });

  test("complains of a slot that can't be read only when it comes to it", async () => {
    const active = slotAt(1, abi.LUKS_SLOT_ACTIVE);
    const volume = area.slice();
    new DataView(volume.buffer).setUint32(active, abi.LUKS_KEY_ENABLED);
    new DataView(volume.buffer).setUint32(slotAt(1, abi.LUKS_SLOT_ITERATIONS), 1000);
    expect(await open(volume)).toEqual(masterKey);
    await expect(open(volume, text("wrong"))).rejects.toThrow("behind the end");
  });

  test("opens nothing without a slot in use", async () => {
    const volume = area.slice();
    new DataView(volume.buffer).setUint32(slotAt(0, 0), abi.LUKS_KEY_DISABLED);
    await expect(open(volume)).rejects.toThrow("Invalid password");
  });
});

describe("parseLuksHeader()", () => {
  test("complains as QSD does of what is wrong", () => {
    const { LUKS_HEADER_CIPHER_NAME: name, LUKS_HEADER_CIPHER_MODE: mode } = abi;
    const { LUKS_HEADER_HASH_SPEC: hash, LUKS_HEADER_KEY_BYTES: keyBytes } = abi;
    const { LUKS_HEADER_PAYLOAD_OFFSET: payload, LUKS_HEADER_MK_DIGEST_ITER: iterations } = abi;
    const offset = abi.LUKS_SLOT_KEY_MATERIAL_OFFSET;
    const cases: readonly (readonly [string, ...(readonly [number, number | string][])])[] = [
      [""],
      ["Volume is not in LUKS format", [0, "luks"]],
      ["LUKS version 2 is not supported", [4, 0xbabe_0002]],
      ["LUKS header cipher name is not NUL terminated", [name, "a".repeat(32)]],
      ["LUKS header cipher mode is not NUL terminated", [mode, "a".repeat(32)]],
      ["LUKS header hash spec is not NUL terminated", [hash, "a".repeat(32)]],
      ["Algorithm 'serpent' with key size 32 bytes not supported", [name, "serpent"]],
      ["Algorithm 'aes' with key size 24 bytes not supported", [keyBytes, 48]],
      ["Algorithm 'aes' with key size 64 bytes not supported", [mode, "cbc-essiv:sha256"]],
      ["Cipher mode 'cbc' not supported", [mode, "cbc-plain64"], [keyBytes, 32]],
      ["Cipher mode 'foo' not supported", [mode, "foo-plain64"]],
      ["Unexpected cipher mode string format 'xts'", [mode, "xts"]],
      ["IV generator 'plain' not supported", [mode, "xts-plain"]],
      ["Hash algorithm 'foo' not supported", [mode, "xts-plain64:foo"]],
      ["", [mode, "xts-plain64:sha1"]],
      ["Hash algorithm 'md5' not supported", [hash, "md5"]],
      ["Hash algorithm 'constructor' not supported", [hash, "constructor"]],
      ["XTS cipher key length should be a multiple of 2", [keyBytes, 33]],
      ["LUKS payload is overlapping with the header", [payload, 7]],
      ["Keyslot 0 is overlapping with the encrypted payload", [payload, 8]],
      ["Keyslot 0 is overlapping with the encrypted payload", [keyBytes, 0xffff_ffff]],
      ["Keyslots 0 and 1 are overlapping in the header", [keyBytes, 65]],
      ["LUKS key iteration count is zero", [iterations, 0]],
      ["LUKS key iteration count 4294967295 is too large", [iterations, 0xffff_ffff]],
      ["Keyslot 3 state (active/disable) is corrupted", [slotAt(3, 0), 1]],
      ["Keyslot 0 iteration count is zero", [slotAt(0, abi.LUKS_SLOT_ITERATIONS), 0]],
      ["", [slotAt(1, abi.LUKS_SLOT_ITERATIONS), 0xffff_ffff]],
      [
        "Keyslot 0 iteration count 100000001 is too large",
        [slotAt(0, abi.LUKS_SLOT_ITERATIONS), ITERATIONS_MAX + 1],
      ],
      ["Keyslot 0 is overlapping with the LUKS header", [slotAt(0, offset), 7]],
      ["Keyslots 0 and 1 are overlapping in the header", [slotAt(1, offset), 300]],
      ["Keyslot 1 is corrupted (stripes -1 != 4000)", [slotAt(1, 44), 0xffff_ffff]],
    ];
    for (const [message, ...changes] of cases) {
      expect(complaintOf(changed(...changes))).toBe(message);
    }
  });
});

describe("passphraseOf()", () => {
  const secrets = new Map<string, { secret?: Uint8Array }>([
    ["good", { secret: text("grüße") }],
    ["other", {}],
    ["latin", { secret: new Uint8Array([0xe9]) }],
    ["nul", { secret: text("a\0b") }],
  ]);
  const find = (id: string) => secrets.get(id);

  test("finds text, and says what is wrong with all else", () => {
    expect(passphraseOf("good", find)).toEqual(text("grüße"));
    expect(() => passphraseOf("none", find)).toThrow("No secret with id 'none'");
    expect(() => passphraseOf("other", find)).toThrow("Object with id 'other' is not a secret");
    for (const id of ["latin", "nul"]) {
      expect(() => passphraseOf(id, find)).toThrow(`Data from secret ${id} is not valid UTF-8`);
    }
  });
});

describe("iterationsPerSecond()", () => {
  test("measures for long enough", async () => {
    let now = 0;
    // Each derivation takes twice as long as the one before.
    const times = [0, 20, 20, 45, 45, 165];
    const clock = () => times[now++]!;
    const parts = { password: text("x"), salt: text("y"), bytes: 20, hash: "sha1" };
    expect(await iterationsPerSecond(parts, clock)).toBe(Math.floor((131_072 * 1000) / 120));
  });
});
