/** Every kind of address that an NBD server can listen on. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { nbdsh, requireClient, run } from "../support/clients.ts";
import { assertSameBytes, MiB, patternImage, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type SpawnDaemon, spawnDaemon, startDaemon } from "../support/process.ts";
import { serve, unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

interface Listening extends AsyncDisposable {
  readonly content: Buffer;
}

/** Serves a pattern image at an address, given in the words of --nbd-server. */
async function listen(address: string, options: SpawnDaemon = {}): Promise<Listening> {
  await using made = new AsyncDisposableStack();
  const directory = made.use(await temporaryDirectory());
  const image = directory.file("disk.raw");
  const content = await patternImage(image, MiB);
  const args = [
    ...["--blockdev", `driver=file,node-name=disk,filename=${image}`],
    ...["--nbd-server", address],
    ...["--export", "type=nbd,id=e0,node-name=disk"],
  ];
  made.use(await startDaemon(directory.path, args, options));
  const all = made.move();
  return {
    content,
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** A TCP port that is free on every local address right now. */
function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "::", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" ? (address?.port ?? 0) : 0));
    });
  });
}

async function expectServes(host: string, port: number, content: Buffer): Promise<void> {
  const client = await NbdClient.open({ host, port }, { exportName: "disk" });
  assertSameBytes(await client.read(4096, 8192), content.subarray(4096, 12_288));
  client.close();
}

async function expectRefuses(host: string, port: number): Promise<void> {
  await expect(NbdClient.connect({ host, port })).rejects.toThrow();
}

async function expectFails(address: string, message: string): Promise<void> {
  let said = "";
  try {
    await using _ = await listen(address);
  } catch (error) {
    said = String(error);
  }
  expect(said).toContain(message);
}

describe("inet", () => {
  test("listens on an IPv4 address", async () => {
    const port = await freePort();
    await using disk = await listen(`addr.type=inet,addr.host=127.0.0.1,addr.port=${port}`);
    await expectServes("127.0.0.1", port, disk.content);
    await expectRefuses("::1", port);
    const said = await run("nbd-client", ["-l", "127.0.0.1", String(port)]);
    expect(said).toContain("disk");
    expect(Number(await run("nbdinfo", ["--size", `nbd://127.0.0.1:${port}/disk`]))).toBe(MiB);
  });

  test("listens on an IPv6 address", async () => {
    const port = await freePort();
    await using disk = await listen(`addr.type=inet,addr.host=::1,addr.port=${port}`);
    await expectServes("::1", port, disk.content);
    await expectRefuses("127.0.0.1", port);
  });

  test("listens on all that localhost means", async () => {
    const port = await freePort();
    await using disk = await listen(`addr.type=inet,addr.host=localhost,addr.port=${port}`);
    await expectServes("127.0.0.1", port, disk.content);
    await expectServes("localhost", port, disk.content);
  });

  test("with an empty host listens on both families", async () => {
    const port = await freePort();
    await using disk = await listen(`addr.type=inet,addr.host=,addr.port=${port}`);
    await expectServes("127.0.0.1", port, disk.content);
    await expectServes("::1", port, disk.content);
  });

  test("ipv4=off leaves IPv6 only, ipv6=off IPv4 only", async () => {
    const port = await freePort();
    {
      await using disk = await listen(`addr.type=inet,addr.host=,addr.port=${port},addr.ipv4=off`);
      await expectServes("::1", port, disk.content);
      await expectRefuses("127.0.0.1", port);
    }
    await using disk = await listen(`addr.type=inet,addr.host=,addr.port=${port},addr.ipv6=off`);
    await expectServes("127.0.0.1", port, disk.content);
    await expectRefuses("::1", port);
  });

  test("to= tries the ports up to it", async () => {
    const port = await freePort();
    const words = `addr.type=inet,addr.host=127.0.0.1,addr.port=${port}`;
    await using first = await listen(words);
    await using second = await listen(`${words},addr.to=${port + 20}`);
    await expectServes("127.0.0.1", port, first.content);
    await expectServes("127.0.0.1", port + 1, second.content);
  });

  test("on a port in use fails", async () => {
    const port = await freePort();
    const words = `addr.type=inet,addr.host=127.0.0.1,addr.port=${port}`;
    await using disk = await listen(words);
    await expectFails(words, "Address already in use");
    await expectServes("127.0.0.1", port, disk.content);
  });
});

describe("unix", () => {
  test("in the abstract namespace needs no file", async () => {
    const name = `outport-test-${process.pid}-${Date.now()}`;
    await using disk = await listen(`addr.type=unix,addr.path=${name},addr.abstract=on`);
    const client = await NbdClient.open({ path: `\0${name}` }, { exportName: "disk" });
    assertSameBytes(await client.read(0, 4096), disk.content.subarray(0, 4096));
    client.close();
    expect(existsSync(name)).toBe(false);
  });

  test("takes over a socket file that nobody listens on", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("stale.sock");
    {
      const args = ["--nbd-server", `addr.type=unix,addr.path=${path}`];
      const daemon = spawnDaemon([...args, "--pidfile", directory.file("pid")]);
      await daemon.ready(directory.file("pid"));
      daemon.kill();
      await daemon.exited;
    }
    expect(statSync(path).isSocket()).toBe(true);
    await using disk = await listen(`addr.type=unix,addr.path=${path}`);
    const size = await run("nbdinfo", ["--size", unixUri(path, "disk")]);
    expect(Number(size)).toBe(disk.content.length);
  });

  test("does not steal a socket that another daemon serves", async () => {
    await using disk = await serve();
    const words = `addr.type=unix,addr.path=${disk.socket}`;
    await expectFails(words, "Address already in use");
    expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(disk.bytes);
  });

  test("does not replace a file that is no socket", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("precious");
    const content = await patternImage(path, 4096);
    await expectFails(`addr.type=unix,addr.path=${path}`, "in use");
    assertSameBytes(readFileSync(path), content);
  });

  test("with a path that is too long fails", async () => {
    await expectFails(`addr.type=unix,addr.path=/tmp/${"x".repeat(120)}`, "too long");
  });
});

describe("fd", () => {
  /** Listens on a unix socket, and runs its arguments with it as file descriptor 3. */
  const LAUNCHER = `
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.execvp(sys.argv[2], sys.argv[2:])
`;

  test("serves on a listening socket that it inherited", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("inherited.sock");
    const prefix = [requireClient("python3"), "-c", LAUNCHER, path];
    await using disk = await listen("addr.type=fd,addr.str=3", { prefix });
    const bytes = await nbdsh<string>(`
h.connect_uri("${unixUri(path, "disk")}")
show(h.pread(512, 1024).hex())`);
    expect(bytes).toBe(disk.content.subarray(1024, 1536).toString("hex"));
  });

  test("that is not open fails", async () => {
    await expectFails("addr.type=fd,addr.str=77", "--nbd-server");
  });
});

describe("vsock", () => {
  /** The loopback transport gives a machine its local CID, 1. */
  const hasLoopback = existsSync("/sys/module/vsock_loopback");
  if (!hasLoopback) console.warn("vsock is only tried for its errors: no loopback transport here");

  test.skipIf(!hasLoopback)("serves over the loopback CID", async () => {
    await using disk = await listen("addr.type=vsock,addr.cid=1,addr.port=10809");
    const bytes = await nbdsh<string>(`
h.set_export_name("disk")
h.connect_vsock(1, 10809)
show(h.pread(512, 0).hex())`);
    expect(bytes).toBe(disk.content.subarray(0, 512).toString("hex"));
  });

  test("with a CID that is no number fails", async () => {
    const words = "addr.type=vsock,addr.cid=abc,addr.port=10809";
    await expectFails(words, "--nbd-server");
  });
});
