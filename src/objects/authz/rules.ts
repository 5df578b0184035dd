/** Rules that say who may come in. Pure. Spec: qapi/authz.json QAuthZListRule; QEMU authz/list.c */
import type { InferOutput } from "valibot";
import { arrayOf, doc, enumeration, object, optional, str } from "../../qapi/scalars.ts";
import { matchesGlob } from "./glob.ts";

export const policySchema = enumeration("QAuthZListPolicy", ["deny", "allow"]);

export const rulesSchema = arrayOf(
  object("QAuthZListRule", {
    match: doc(str, "Name of peers, or a pattern"),
    policy: doc(policySchema, "What becomes of a peer that matches"),
    format: optional(
      enumeration("QAuthZListFormat", ["exact", "glob"]),
      "How to compare: glob takes * and ? for what is to match (default: exact)",
    ),
  }),
);

export type Policy = InferOutput<typeof policySchema>;
export type Rules = Readonly<InferOutput<typeof rulesSchema>>;

export const listMembers = {
  policy: optional(policySchema, "What becomes of peers that no rule matches (default: deny)"),
  rules: optional(rulesSchema, "The first one that matches counts"),
} as const;

/** `policy` is for peers that no rule matches. */
export function isAllowedBy(rules: Rules, policy: Policy, identity: string): boolean {
  const rule = rules.find(({ match, format }) =>
    format === "glob" ? matchesGlob(match, identity) : match === identity,
  );
  return (rule?.policy ?? policy) === "allow";
}
