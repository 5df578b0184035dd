/** The object kind authz-list: rules over the monitor. Thread: main. Spec: qapi/authz.json */
import type { ObjectKind, QomType } from "../registry.ts";
import { authz } from "./base.ts";
import {
  isAllowedBy,
  listMembers,
  type Policy,
  policySchema,
  type Rules,
  rulesSchema,
} from "./rules.ts";

const type: QomType = {
  name: "authz-list",
  parent: authz,
  userCreatable: true,
  properties: [
    { name: "policy", type: "QAuthZListPolicy", schema: policySchema },
    { name: "rules", type: "QAuthZListRule", schema: rulesSchema },
  ],
};

export function authzListKind(): ObjectKind {
  return {
    name: "authz-list",
    members: listMembers,
    type,
    async create(_id, options) {
      const values: { policy: Policy; rules: Rules } = { policy: "deny", rules: [], ...options };
      return {
        type,
        get: (name) => values[name as keyof typeof values],
        set(name, value) {
          Object.assign(values, { [name]: value });
        },
        isAllowed: (identity) => isAllowedBy(values.rules, values.policy, identity),
        async delete() {},
      };
    },
  };
}
