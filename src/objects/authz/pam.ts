/** The object kind authz-pam: listed as QSD lists it, never made. Pure. Spec: qapi/authz.json */
import { doc, str } from "../../qapi/scalars.ts";
import type { ObjectKind } from "../registry.ts";
import { authz } from "./base.ts";

export function authzPamKind(): ObjectKind {
  return {
    name: "authz-pam",
    members: { service: doc(str, "Name of the PAM service") },
    type: { name: "authz-pam", parent: authz, userCreatable: true, properties: [] },
    unavailable: "PAM is not supported",
    create: () => Promise.reject(new Error("authz-pam is unavailable")),
  };
}
