/** The object kind authz-simple: one peer may come in. Thread: main. Spec: qapi/authz.json */
import { doc, str } from "../../qapi/scalars.ts";
import type { ObjectKind, QomType } from "../registry.ts";
import { authz } from "./base.ts";

const type: QomType = {
  name: "authz-simple",
  parent: authz,
  userCreatable: true,
  properties: [{ name: "identity", type: "string", schema: str }],
};

export function authzSimpleKind(): ObjectKind {
  return {
    name: "authz-simple",
    members: { identity: doc(str, "Name of the peer that may come in") },
    type,
    async create(_id, options) {
      let { identity } = options;
      return {
        type,
        get: () => identity,
        set(_name, value) {
          identity = value;
        },
        isAllowed: (peer) => peer === identity,
        async delete() {},
      };
    },
  };
}
