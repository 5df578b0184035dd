/** IothreadNbdServer while the host lets it have no more connections: injected faults of accept. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { NbdExports } from "../../../../src/exports/nbd/export-table.ts";
import { IothreadNbdServer } from "../../../../src/exports/nbd/server.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import { ECONNABORTED, EMFILE, ENFILE, ENOBUFS, strerror } from "../../../../src/runtime/errno.ts";
import { NbdClient } from "../../../support/nbd-client.ts";
import { ENGINES, makeReactor, runOn } from "../../../support/reactor.ts";

/** The server's pause after a failure. */
const PAUSE_MS = 100;

for (const engineName of ENGINES) {
  describe(`IothreadNbdServer on ${engineName}, when accept fails`, () => {
    let folder: string;
    let path: string;
    let reactor: Reactor;
    let server: IothreadNbdServer;
    let warnings: string[];
    /** Errors that the next accepts end with. */
    let faults: number[];
    /** While this is set, every accept ends with it. */
    let lasting: number;
    let accepts: number;

    beforeEach(() => {
      folder = mkdtempSync(`${tmpdir()}/outport-accept-`);
      path = `${folder}/nbd.sock`;
      warnings = [];
      faults = [];
      lasting = 0;
      accepts = 0;
      reactor = makeReactor(engineName);
      const { engine } = reactor;
      const accept = engine.accept.bind(engine);
      engine.accept = (fd, token) => {
        accepts++;
        const fault = faults.shift() ?? lasting;
        if (fault === 0) accept(fd, token);
        else engine.post(token, -fault);
      };
      server = new IothreadNbdServer({
        reactor,
        exports: new NbdExports(),
        onSession: () => {},
        log: (level, text) => {
          if (level === "warn") warnings.push(text);
        },
      });
    });
    afterEach(async () => {
      lasting = 0;
      if (server.running) await runOn(reactor, () => server.stop());
      reactor.engine.close();
      reactor.memory.unmap();
      rmSync(folder, { recursive: true });
    });

    const start = () => {
      const addresses = [{ type: "unix", path } as const];
      server.start({ addresses, label: "test", connectionsMax: 0, handshakeSecondsMax: 10 });
    };
    const greetOne = () =>
      runOn(reactor, async () => {
        const client = await NbdClient.connect({ path });
        await client.greet();
        client.close();
      });

    test("tells, pauses and tries again until clients come in", async () => {
      faults = [EMFILE, ENFILE, ENOBUFS, ECONNABORTED];
      const told = faults.map((error) => `Failed to accept a client on test: ${strerror(error)}`);
      const startMs = Date.now();
      start();
      await greetOne();
      // Timers of the test's and of the reactor's clock differ a little.
      expect(Date.now() - startMs).toBeGreaterThan(told.length * PAUSE_MS - 20);
      expect(warnings).toEqual(told);
      await greetOne();
      expect(warnings).toEqual(told);
    });

    test("tells once, turns in no circle while it lasts, and stops all the same", async () => {
      lasting = EMFILE;
      const startMs = Date.now();
      start();
      await runOn(reactor, async () => {
        while (accepts < 4) await new Promise((resolve) => setTimeout(resolve, 5));
      });
      // Timers of the test's and of the reactor's clock differ a little.
      expect(Date.now() - startMs).toBeGreaterThan(3 * PAUSE_MS - 20);
      expect(warnings.length).toBe(1);
      await runOn(reactor, () => server.stop());
      expect(server.running).toBe(false);
      expect(existsSync(path)).toBe(false);
      lasting = 0;
      start();
      await greetOne();
    });
  });
}
