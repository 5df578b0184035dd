/**
 * qcow2 images that lie, one small case for each kind of lie and for each bug that one has found:
 * what is changed in a sound image, and what comes of it. To add one: a line in one of the lists.
 */
import { contentLies } from "./contents.ts";
import { headerLies } from "./headers.ts";
import type { Lie } from "./make.ts";
import { tableLies } from "./tables.ts";

export const lies: readonly Lie[] = [...contentLies, ...headerLies, ...tableLies];
