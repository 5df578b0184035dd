/** The entry of an offload thread on Bun. */
import { runOffload } from "../../src/io/offload.ts";
import { threadStart } from "../node/threads.ts";
import { threadDriver } from "./driver.ts";

await runOffload(threadDriver(), threadStart());
