/** The entry of the main thread on Deno. */
import { main } from "../../src/main.ts";
import { runtimeDriver } from "./driver.ts";

await main(runtimeDriver());
