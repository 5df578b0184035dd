/** The block drivers that there are. To add one: its file here, and a line below. Thread: any. */
import type { BlockDriver } from "../driver.ts";
import { blkdebug } from "./blkdebug/index.ts";
import { blklogwrites } from "./blklogwrites/index.ts";
import { blkverify } from "./blkverify.ts";
import { compress } from "./compress.ts";
import { copyOnRead } from "./copy-on-read.ts";
import { file, hostDevice } from "./file/index.ts";
import { luks } from "./luks/index.ts";
import { nullAio, nullCo } from "./null.ts";
import { qcow2 } from "./qcow2/index.ts";
import { raw } from "./raw.ts";
import { throttle } from "./throttle.ts";
import { vdi } from "./vdi.ts";
import { vhdx } from "./vhdx.ts";
import { vmdk } from "./vmdk.ts";
import { vpc } from "./vpc.ts";

export const blockDrivers: readonly BlockDriver[] = [
  blkdebug,
  blklogwrites,
  blkverify,
  compress,
  copyOnRead,
  file,
  hostDevice,
  luks,
  nullAio,
  nullCo,
  qcow2,
  raw,
  throttle,
  vdi,
  vhdx,
  vmdk,
  vpc,
];
