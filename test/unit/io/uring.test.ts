/** The io_uring engine keeps the promises of an engine. */
import { createUringEngine } from "../../../src/io/uring.ts";
import { addEngineTests } from "./engine-suite.ts";

addEngineTests("createUringEngine()", createUringEngine);
