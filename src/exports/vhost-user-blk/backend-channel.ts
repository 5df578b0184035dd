/**
 * The channel on which a back-end asks its front-end: here only to say that the configuration
 * space has changed. Whatever happens to it, the session goes on. Thread: iothread.
 * Spec: vhost-user.rst "Back-end communication", BACKEND_CONFIG_CHANGE_MSG
 */
import { MSG_NOSIGNAL, SHUT_RDWR } from "../../abi/linux-socket.ts";
import { VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, VHOST_USER_VERSION } from "../../abi/vhost-user.ts";
import { Memory } from "../../io/memory.ts";
import type { Reactor } from "../../io/reactor.ts";
import { strerror } from "../../runtime/errno.ts";
import type { Log } from "../../util/log.ts";
import { encodeMessage } from "./message.ts";

const MEMORY_BYTES = 4096;

export class BackendChannel {
  #reactor: Reactor;
  #fd: number;
  #log: Log;
  #memory: Memory;
  /** What is not sent yet, at most one message: a change says nothing of what has changed. */
  #wanted = false;
  #sending = false;
  #closed = false;

  /** Takes the fd. */
  constructor(reactor: Reactor, fd: number, log: Log) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.#log = log;
    this.#memory = new Memory(reactor.linux, MEMORY_BYTES);
  }

  sendConfigChange(): void {
    this.#wanted = true;
    if (!this.#sending && !this.#closed) this.#reactor.spawn(() => this.#send());
  }

  /** Instead of close(): its fd, or null when it is no good any more, or busy. */
  detach(): number | null {
    if (this.#closed || this.#sending) {
      this.close();
      return null;
    }
    this.#closed = true;
    this.#memory.unmap();
    return this.#fd;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#sending) this.#reactor.linux.shutdown(this.#fd, SHUT_RDWR);
    else this.#release();
  }

  async #send(): Promise<void> {
    if (this.#sending) return;
    this.#sending = true;
    let failure = 0;
    while (this.#wanted && !this.#closed && failure === 0) {
      this.#wanted = false;
      failure = await this.#sendMessage();
    }
    this.#sending = false;
    if (failure !== 0 && !this.#closed) {
      // QSD differs: it ends the session.
      this.#log("warn", `Cannot tell the front-end of a resize: ${strerror(failure)}`);
      this.#closed = true;
    }
    if (this.#closed) this.#release();
  }

  /** 0 or -errno. */
  async #sendMessage(): Promise<number> {
    const request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG;
    const bytes = encodeMessage(request, new Uint8Array(0), VHOST_USER_VERSION);
    const memory = this.#memory;
    memory.u8.set(bytes, 0);
    for (let done = 0; done < bytes.length; ) {
      const result = await this.#reactor.op((engine, token) => {
        const address = memory.address + done;
        engine.send(this.#fd, address, bytes.length - done, MSG_NOSIGNAL, token);
      });
      if (result < 0) return result;
      done += result;
    }
    return 0;
  }

  #release(): void {
    this.#reactor.linux.close(this.#fd);
    this.#memory.unmap();
  }
}
