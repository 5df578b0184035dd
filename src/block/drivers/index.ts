/** The block drivers that there are. To add one: its file here, and a line below. Thread: any. */
import type { BlockDriver } from "../driver.ts";
import { file, hostDevice } from "./file/index.ts";
import { nullAio, nullCo } from "./null.ts";
import { raw } from "./raw.ts";

export const blockDrivers: readonly BlockDriver[] = [file, hostDevice, nullAio, nullCo, raw];
