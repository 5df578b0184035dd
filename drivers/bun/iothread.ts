/** The entry of an iothread on Bun. */
import { runIothread } from "../../src/iothread/worker.ts";
import { threadStart } from "../node/threads.ts";
import { threadDriver } from "./driver.ts";

await runIothread(threadDriver(), threadStart());
