/** The other end of a Stream of the control plane, without any socket. */
import type { Stream } from "../../src/runtime/driver.ts";

export class FakeStream implements Stream {
  onData: (bytes: Uint8Array) => void = () => {};
  onEnd: () => void = () => this.end();
  onClose: () => void = () => {};
  pendingBytes = 0;
  paused = false;
  ended = false;
  #text = "";

  write(bytes: Uint8Array): void {
    this.#text += new TextDecoder().decode(bytes);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
  }

  end(): void {
    this.ended = true;
  }

  destroy(): void {
    this.ended = true;
  }

  /** As if the peer had sent it. */
  receive(text: string): void {
    this.onData(new TextEncoder().encode(text));
  }

  /** What was written since the last call. */
  take(): string {
    const text = this.#text;
    this.#text = "";
    return text;
  }

  /** The same as messages, after everything that is under way. */
  async messages(): Promise<Record<string, unknown>[]> {
    await new Promise((resolve) => setTimeout(resolve, 5));
    return this.take()
      .split("\r\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line));
  }
}
