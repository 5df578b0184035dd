/**
 * The object kind secret_keyring: a secret in a key of the kernel. Thread: main.
 * Spec: qapi/crypto.json SecretKeyringProperties; keyctl_read(3)
 */
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../../abi/linux.ts";
import { doc, int32 } from "../../qapi/scalars.ts";
import { strerror } from "../../runtime/errno.ts";
import type { Linux } from "../../runtime/linux.ts";
import { OutportError } from "../../util/error.ts";
import type { ObjectKind, QomType } from "../registry.ts";
import { commonMembers, makeSecret, secretCommon } from "./common.ts";

/** Longest payload of a key that users make. */
const PAYLOAD_BYTES_MAX = 64 * 1024;

const type: QomType = {
  name: "secret_keyring",
  parent: secretCommon,
  properties: [{ name: "serial", type: "int32_t", schema: int32 }],
};

export function secretKeyringKind(linux: Linux): ObjectKind {
  return {
    name: "secret_keyring",
    members: { ...commonMembers, serial: doc(int32, "Serial number of the key") },
    type,
    validate({ serial }) {
      checkSerial(serial as number);
    },
    async create(id, options, objects) {
      const written = readKey(linux, options.serial as number);
      const secret = makeSecret({ id, type, options, objects, written });
      return {
        ...secret,
        set(name, value) {
          if (name === "serial") checkSerial(value as number);
          return secret.set?.(name, value);
        },
      };
    },
  };
}

function checkSerial(serial: number): void {
  if (serial === 0) throw new OutportError("invalid", "'serial' should not be equal to 0");
}

function readKey(linux: Linux, serial: number): Uint8Array<ArrayBuffer> {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const address = linux.mmap(0, PAYLOAD_BYTES_MAX, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (address < 0) throw failure(serial, address);
  try {
    const length = linux.keyctlRead(serial, address, PAYLOAD_BYTES_MAX);
    if (length < 0) throw failure(serial, length);
    if (length > PAYLOAD_BYTES_MAX) {
      throw new OutportError("limit", `The key ${hex(serial)} is longer than 64 KiB`);
    }
    // SAFETY: sliced before it is unmapped.
    return new Uint8Array(linux.ffi.view(address, PAYLOAD_BYTES_MAX)).slice(0, length);
  } finally {
    linux.munmap(address, PAYLOAD_BYTES_MAX);
  }
}

function failure(serial: number, errno: number): OutportError {
  const text = `Unable to read serial key ${hex(serial)}: ${strerror(errno)}`;
  return new OutportError("io", text);
}

function hex(serial: number): string {
  return (serial >>> 0).toString(16).padStart(8, "0");
}
