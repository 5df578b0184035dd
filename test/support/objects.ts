/** The objects and their commands without a daemon: threads are faked, files are real. */
import { objectKinds } from "../../src/objects/index.ts";
import { QomTree } from "../../src/objects/qom.ts";
import { ObjectRegistry } from "../../src/objects/registry.ts";
import { objectCommands } from "../../src/qmp/commands/object.ts";
import { qomCommands } from "../../src/qmp/commands/qom.ts";
import { Dispatcher } from "../../src/qmp/dispatcher.ts";
import { parseJson } from "../../src/qmp/json-stream.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { OutportError } from "../../src/util/error.ts";
import { driver } from "./driver.ts";

function fail(message: string): never {
  throw new OutportError("not-found", message);
}

export class ObjectRig {
  /** Calls to the threads, and lines of the log. */
  readonly log: unknown[] = [];
  /** Iothreads that do not want to stop. */
  readonly inUse = new Set<string>();
  /** What iothreads.start() and configure() fail with. */
  failure: OutportError | undefined;
  readonly registry: ObjectRegistry;
  readonly qom: QomTree;
  readonly dispatcher: Dispatcher;

  constructor() {
    const call = async (...args: unknown[]): Promise<void> => {
      if (this.failure !== undefined) throw this.failure;
      this.log.push(args);
    };
    this.registry = new ObjectRegistry(
      objectKinds({
        iothreads: {
          start: (id, options) => call("start", id, options),
          configure: (id, options) => call("configure", id, options),
          stop: (id) => {
            if (this.inUse.has(id)) throw new OutportError("in-use", `object '${id}' is in use`);
            return call("stop", id);
          },
        },
        linux: new Linux(driver.ffi, driver.arch),
        chardevs: { get: (id) => fail(`chardev "${id}" not found`) },
        makeMonitor: () => fail("no monitors here"),
        parseJson,
        log: (level, text) => this.log.push([level, text]),
      }),
    );
    const chardev = { name: "chardev-null", properties: [] };
    this.qom = new QomTree({
      kinds: this.registry.kinds,
      objects: () => this.registry.list(),
      chardevs: () => [["c0", { type: chardev, get: () => undefined }]],
      types: [chardev],
    });
    this.dispatcher = new Dispatcher([...objectCommands(this.registry), ...qomCommands(this.qom)]);
  }

  run(command: string, args: object = {}): Promise<unknown> {
    return this.dispatcher.execute(command, args);
  }

  add(type: string, id: string, options: object = {}): Promise<unknown> {
    return this.run("object-add", { "qom-type": type, id, ...options });
  }

  /** The message of the error that a command or an addition ends with; undefined for none. */
  async messageOf(doing: Promise<unknown>): Promise<string | undefined> {
    return await doing.then(
      () => undefined,
      (error) => (error instanceof OutportError ? error.message : `not ours: ${error}`),
    );
  }

  get(path: string, property: string): Promise<unknown> {
    return this.run("qom-get", { path, property });
  }

  set(path: string, property: string, value: unknown): Promise<unknown> {
    return this.run("qom-set", { path, property, value });
  }

  /** Property to value, as qom-list-get tells. */
  async values(path: string): Promise<Record<string, unknown>> {
    const [object] = (await this.run("qom-list-get", { paths: [path] })) as [
      { properties: { name: string; value?: unknown }[] },
    ];
    return Object.fromEntries(object.properties.map(({ name, value }) => [name, value]));
  }
}
