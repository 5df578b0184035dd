/** The open exports of one iothread, of all types. Thread: iothread. */
import type { ExportOpen, IothreadHandlersOf, ShutdownReply } from "../iothread/messages.ts";
import { assert } from "../util/error.ts";

/** What an export type is on an iothread. */
export interface ExportService {
  /** Its BlockExportType value. */
  readonly type: string;
  /** Ready to serve when it returns. Throws OutportError, and leaves nothing behind then. */
  open(params: ExportOpen): Promise<unknown>;
  /**
   * Takes no more clients. `safe`: throws OutportError of kind in-use when there is one, and
   * nothing has changed. Missing: main knows better.
   */
  shutdown?(id: string, safe: boolean): ShutdownReply;
  /** Drops the clients, lets requests in flight finish, flushes, forgets it. */
  close(id: string): Promise<void>;
  /** Gives the export with its clients away. Throws OutportError, and nothing has changed. */
  suspend(id: string): Promise<unknown>;
  /** Takes over what suspend() gave on this or another thread. */
  resume(params: ExportOpen, handover: unknown): Promise<void>;
}

export class ExportRegistry {
  #services: ReadonlyMap<string, ExportService>;
  /** By export id. */
  #open = new Map<string, ExportService>();

  constructor(services: readonly ExportService[]) {
    this.#services = new Map(services.map((service) => [service.type, service]));
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<
    "export-open" | "export-shutdown" | "export-close" | "export-suspend" | "export-resume"
  > = {
    "export-open": async (params) => {
      const service = this.#known(params);
      const reply = await service.open(params);
      this.#open.set(params.id, service);
      return reply;
    },
    "export-shutdown": async ({ id, safe }) =>
      this.#serviceOf(id).shutdown?.(id, safe) ?? { clientCount: 0 },
    "export-close": async ({ id }) => {
      await this.#close(id);
      return null;
    },
    "export-suspend": async ({ id }) => {
      const handover = await this.#serviceOf(id).suspend(id);
      this.#open.delete(id);
      return { handover };
    },
    "export-resume": async ({ open, handover }) => {
      const service = this.#known(open);
      await service.resume(open, handover);
      this.#open.set(open.id, service);
      return null;
    },
  };

  /** Closes all that is left. */
  async closeAll(): Promise<void> {
    for (const id of [...this.#open.keys()]) await this.#close(id);
  }

  /** For an export that is not open. */
  #known({ id, type }: ExportOpen): ExportService {
    const service = this.#services.get(type);
    assert(service !== undefined, "main knows the same export types");
    assert(!this.#open.has(id), "an export is opened once");
    return service;
  }

  #serviceOf(id: string): ExportService {
    const service = this.#open.get(id);
    assert(service !== undefined, `export '${id}' is open`);
    return service;
  }

  async #close(id: string): Promise<void> {
    const service = this.#serviceOf(id);
    this.#open.delete(id);
    await service.close(id);
  }
}
