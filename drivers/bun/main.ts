/** The entry of the main thread on Bun. */
import { main } from "../../src/main.ts";
import { runtimeDriver } from "./driver.ts";

await main(runtimeDriver());
