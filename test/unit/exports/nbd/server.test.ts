import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import {
  IPPROTO_TCP,
  SO_KEEPALIVE,
  SOL_SOCKET,
  TCP_KEEPCNT,
  TCP_KEEPIDLE,
  TCP_KEEPINTVL,
} from "../../../../src/abi/linux-socket.ts";
import { NBD_OPT_GO, NBD_OPT_LIST } from "../../../../src/abi/nbd.ts";
import { NbdExports } from "../../../../src/exports/nbd/export-table.ts";
import { BASE_ALLOCATION } from "../../../../src/exports/nbd/meta-context.ts";
import { IothreadNbdServer, type NbdEntrant } from "../../../../src/exports/nbd/server.ts";
import type { ListenAddress, NbdServerStart } from "../../../../src/iothread/messages.ts";
import type { Address } from "../../../support/byte-stream.ts";
import { NbdClient } from "../../../support/nbd-client.ts";
import { bytesOf, concat, infoData, option, textOf, u32 } from "../../../support/nbd-wire.ts";
import { ENGINES, type EngineName, makeReactor } from "../../../support/reactor.ts";

const HELLO = concat(u32(3), option(NBD_OPT_GO, infoData("disk")));

/** A server whose reactor takes turns with the test's own event loop. */
class Rig {
  readonly entrants: NbdEntrant[] = [];
  readonly server: IothreadNbdServer;
  readonly folder = mkdtempSync(`${tmpdir()}/outport-nbd-`);
  readonly path = `${this.folder}/nbd.sock`;
  readonly log: string[] = [];
  #running = true;
  #loop: Promise<void>;
  readonly reactor;

  constructor(engine: EngineName) {
    this.reactor = makeReactor(engine);
    const exports = new NbdExports();
    exports.add({
      ...{ id: "e0", name: "disk", description: undefined, bytes: 4096, readOnly: true },
      ...{ multiConn: true, blockSize: { min: 1, preferred: 4096, max: 2 ** 25 } },
      contexts: [BASE_ALLOCATION],
    });
    this.server = new IothreadNbdServer({
      reactor: this.reactor,
      exports,
      onSession: (entrant) => this.entrants.push(entrant),
      log: (_level, text, facts) => void this.log.push(`${text} ${facts?.port}`),
    });
    this.#loop = this.#run();
  }

  async #run(): Promise<void> {
    while (this.#running) {
      this.reactor.turn(0);
      await pause(1);
    }
  }

  start(options: Partial<NbdServerStart> = {}): Address {
    const addresses: ListenAddress[] = [{ type: "unix", path: this.path }];
    const limits = { connectionsMax: 0, handshakeSecondsMax: 10 };
    this.server.start({ addresses, label: "test", ...limits, ...options });
    return { path: this.path };
  }

  /** An entrant's connection ends. */
  drop(entrant: NbdEntrant): void {
    this.reactor.linux.close(entrant.fd);
    this.server.release();
  }

  async end(): Promise<void> {
    for (const entrant of this.entrants) this.drop(entrant);
    if (this.server.running) await this.server.stop();
    this.#running = false;
    await this.#loop;
    this.reactor.engine.close();
    rmSync(this.folder, { recursive: true });
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 20_000 && !condition(); i++) await pause(1);
  expect(condition()).toBe(true);
}

function openFds(): number {
  return readdirSync("/proc/self/fd").length;
}

for (const engine of ENGINES) {
  describe(`IothreadNbdServer on ${engine}`, () => {
    let rig: Rig;
    const use = async (run: () => Promise<void>) => {
      rig = new Rig(engine);
      try {
        await run();
      } finally {
        await rig.end();
      }
    };

    test("hands over a client with what it sent early", () =>
      use(async () => {
        const client = await NbdClient.connect(rig.start());
        await client.stream.send(HELLO, bytesOf("early"));
        await until(() => rig.entrants.length === 1);
        const { session, early } = rig.entrants[0]!;
        expect(session).toMatchObject({ exportId: "e0", mode: "simple" });
        expect(textOf(early)).toBe("early");
        client.close();
      }));

    test("listens on several addresses, with a port of its choice", () =>
      use(async () => {
        const options = { v6only: true, keepAlive: null, mptcp: false };
        const inet = { type: "inet", port: 0, ...options } as const;
        rig.start({
          addresses: [
            { ...inet, family: 4, address: "127.0.0.1" },
            { ...inet, family: 6, address: "::1" },
          ],
        });
        const ports = rig.log.map((line) => /^listening on test (\d+)$/.exec(line)?.[1]);
        expect(ports).toHaveLength(2);
        expect(ports[1]).toBe(ports[0]!);
        const names = await NbdClient.list({ host: "127.0.0.1", port: Number(ports[0]) });
        expect(names).toEqual(["disk"]);
      }));

    test("probes the clients of an address with keep-alive, over multi-path TCP, too", () =>
      use(async () => {
        const keepAlive = { count: 3, idleSeconds: 4, intervalSeconds: 5 };
        const address = { type: "inet", family: 4, address: "127.0.0.1", port: 0 } as const;
        for (const mptcp of [false, true]) {
          rig.start({ addresses: [{ ...address, v6only: false, keepAlive, mptcp }] });
          const port = Number(/ (\d+)$/.exec(rig.log.at(-1) ?? "")?.[1]);
          const client = await NbdClient.connect({ host: "127.0.0.1", port });
          await client.stream.send(HELLO);
          await until(() => rig.entrants.length === 1);
          const { linux } = rig.reactor;
          const entrant = rig.entrants.pop()!;
          const values = [TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL].map((option) =>
            linux.getsockopt(entrant.fd, IPPROTO_TCP, option),
          );
          expect(linux.getsockopt(entrant.fd, SOL_SOCKET, SO_KEEPALIVE)).toBe(1);
          if (!mptcp) expect(values).toEqual([3, 4, 5]);
          client.close();
          rig.drop(entrant);
          await rig.server.stop();
        }
        rig.start();
      }));

    test("lets the next client wait while connectionsMax are there", () =>
      use(async () => {
        const address = rig.start({ connectionsMax: 1 });
        const first = await NbdClient.connect(address);
        await first.greet();
        const second = await NbdClient.connect(address);
        expect((await second.stream.readQuiet(50)).length).toBe(0);
        await first.stream.send(HELLO.subarray(4));
        await until(() => rig.entrants.length === 1);
        expect((await second.stream.readQuiet(50)).length).toBe(0);
        rig.drop(rig.entrants.pop()!);
        await second.greet();
        first.close();
        second.close();
      }));

    test("ends a handshake that takes too long", () =>
      use(async () => {
        const address = rig.start({ handshakeSecondsMax: 0.1 });
        const slow = await NbdClient.connect(address);
        await slow.greet();
        expect((await slow.stream.readToEnd()).length).toBe(0);
        await until(() => rig.server.clientCount === 0);
        slow.close();
      }));

    test("keeps who entered transmission beyond the handshake's time", () =>
      use(async () => {
        const client = await NbdClient.connect(rig.start({ handshakeSecondsMax: 1 }));
        await client.stream.send(HELLO);
        await until(() => rig.entrants.length === 1);
        await pause(1100);
        expect(client.stream.ended).toBe(false);
        client.close();
      }));

    test("stops reading from a client that doesn't", () =>
      use(async () => {
        const client = await NbdClient.connect(rig.start());
        client.stream.pause();
        const flood = concat(...Array.from({ length: 4096 }, () => option(NBD_OPT_LIST)));
        let accepted = 0;
        const sent = (async () => {
          await client.stream.send(u32(3));
          for (; accepted < 1000; accepted++) await client.stream.send(flood);
        })();
        await pause(300);
        expect(accepted).toBeLessThan(1000);
        client.close();
        await sent;
        await until(() => rig.server.clientCount === 0);
      }));

    test("leaves no descriptor behind, whatever clients do", () =>
      use(async () => {
        const address = rig.start();
        await (await NbdClient.connect(address)).close();
        await until(() => rig.server.clientCount === 0);
        const before = openFds();
        const clients = await Promise.all(
          Array.from({ length: 200 }, () => NbdClient.connect(address)),
        );
        await until(() => rig.server.clientCount === 200);
        for (const [index, client] of clients.entries()) {
          await client.stream.send(HELLO.subarray(0, index % HELLO.length));
          if (index % 3 === 0) client.stream.end();
          else client.close();
        }
        await until(() => rig.server.clientCount === 0);
        for (const client of clients) client.close();
        await until(() => openFds() <= before);
      }));

    test("stops with handshakes under way, removes its socket, starts again", () =>
      use(async () => {
        const address = rig.start();
        const client = await NbdClient.connect(address);
        await client.greet();
        await rig.server.stop();
        expect((await client.stream.readToEnd()).length).toBe(0);
        expect(readdirSync(rig.folder)).toEqual([]);
        rig.start();
        expect(await NbdClient.list(address)).toEqual(["disk"]);
        client.close();
      }));
  });
}

describe("openListener()", () => {
  let rig: Rig;
  beforeAll(() => {
    rig = new Rig("epoll");
  });
  afterAll(() => rig.end());

  test("takes the place of a socket that nobody listens on", async () => {
    rig.start();
    await rig.server.stop();
    const abandoned = new net.Server();
    await new Promise<void>((resolve) => abandoned.listen(`${rig.folder}/x`, resolve));
    const { linux } = rig.reactor;
    linux.rename(`${rig.folder}/x`, rig.path);
    await new Promise((resolve) => abandoned.close(resolve));
    expect(readdirSync(rig.folder)).toEqual(["nbd.sock"]);
    expect(await NbdClient.list(rig.start())).toEqual(["disk"]);
    await rig.server.stop();
  });

  test("doesn't take the place of a listener of this process", async () => {
    const other = new net.Server();
    await new Promise<void>((resolve) => other.listen(rig.path, resolve));
    const message = `Failed to bind socket to ${rig.path}: Address already in use`;
    expect(() => rig.start()).toThrow(message);
    await new Promise((resolve) => other.close(resolve));
  });

  test("leaves a file that is no socket alone", () => {
    writeFileSync(rig.path, "a disk image");
    const message = `Failed to bind socket to ${rig.path}: Address already in use`;
    expect(() => rig.start()).toThrow(message);
    expect(readFileSync(rig.path, "utf8")).toBe("a disk image");
    rmSync(rig.path);
  });

  test("closeListener() leaves what someone else has put there", async () => {
    rig.start();
    rmSync(rig.path);
    writeFileSync(rig.path, "someone else's");
    await rig.server.stop();
    expect(readFileSync(rig.path, "utf8")).toBe("someone else's");
    rmSync(rig.path);
  });

  test("fails in QSD's words", () => {
    const failing = (address: ListenAddress, message: string) => {
      expect(() => rig.start({ addresses: [address] })).toThrow(message);
    };
    const options = { v6only: false, keepAlive: null, mptcp: false };
    const inet = { type: "inet", family: 4, ...options } as const;
    failing(
      { type: "unix", path: "/nonexist/x.sock" },
      "Failed to bind socket to /nonexist/x.sock: No such file or directory",
    );
    failing({ ...inet, address: "192.0.2.1", port: 1 }, "Failed to bind socket: Cannot assign");
    failing({ type: "unix", path: rig.folder }, `Failed to unlink socket ${rig.folder}: Is a dir`);
    const loopback = { ...inet, address: "127.0.0.1", port: 0 };
    const keepAlive = { count: 1, idleSeconds: 1, intervalSeconds: 1 };
    for (const [member, what] of [
      ["count", "count"],
      ["idleSeconds", "idle"],
      ["intervalSeconds", "interval"],
    ] as const) {
      const message = `Unable to set TCP keep-alive ${what} option on socket: Invalid argument`;
      failing({ ...loopback, keepAlive: { ...keepAlive, [member]: 2 ** 32 - 1 } }, message);
    }
    failing({ type: "fd", fd: 9999 }, "File descriptor '9999' is not a socket");
    rig.start({ addresses: [{ ...inet, address: "127.0.0.1", port: 0 }] });
    const port = Number(/ (\d+)$/.exec(rig.log.at(-1) ?? "")?.[1]);
    const second = new Rig("epoll");
    const taken = { addresses: [{ ...inet, address: "127.0.0.1", port }] };
    const message = "Failed to find an available port: Address already in use";
    expect(() => second.start(taken)).toThrow(message);
    return Promise.all([second.end(), rig.server.stop()]);
  });

  // As long as the path, and padded to all that fits (tight=off).
  for (const bytes of [0, 108]) {
    test(`listens on an abstract name of at least ${bytes} bytes`, () => {
      const path = `\0${rig.path}`.padEnd(bytes, "\0");
      rig.start({ addresses: [{ type: "unix", path }] });
      const { linux } = rig.reactor;
      const fd = linux.socket(1, 1);
      expect(linux.connect(fd, { type: "unix", path })).toBe(0);
      linux.close(fd);
      return rig.server.stop();
    });
  }
});
