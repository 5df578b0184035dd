/** Devices that are connected as long as they exist: stdio, files, pipes, null. Thread: main. */
import type { Stream } from "../runtime/driver.ts";
import { Chardev } from "./chardev.ts";

export class StreamChardev extends Chardev {
  /** As query-chardev shows it: the name of its kind. */
  readonly filename: string;

  constructor(id: string, kind: string, stream: Stream) {
    super(id);
    this.filename = kind;
    this.opened(stream);
  }

  protected closeBackend(): void {
    this.stream?.end();
  }

  /** Output goes on, as in QEMU: events are still told where nothing is asked any more. */
  protected override inputDone(): void {}
}

/** What `null` is connected to. */
export function nullStream(): Stream {
  return {
    onData: () => {},
    onEnd: () => {},
    onClose: () => {},
    pendingBytes: 0,
    write: () => {},
    pause: () => {},
    resume: () => {},
    end: () => {},
    destroy: () => {},
  };
}
