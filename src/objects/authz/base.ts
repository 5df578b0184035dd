/** The type that all kinds of authorization come from. Pure. Spec: QEMU authz/base.c */
import type { QomType } from "../registry.ts";

export const authz: QomType = { name: "authz", abstract: true, properties: [] };
