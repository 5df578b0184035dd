/**
 * The one interface that a runtime implements (drivers/*). Everything that the
 * source needs from the world outside the language comes through it.
 */

/** Foreign calls and foreign memory. Each thread makes its own. */
export interface Ffi {
  /**
   * A raw system call. Arguments are safe integers (addresses included); missing ones are 0.
   * Returns the result, or the negative errno. Reliable: nothing runs between call and errno.
   */
  syscall(
    number: number,
    a?: number,
    b?: number,
    c?: number,
    d?: number,
    e?: number,
    f?: number,
  ): number;
  /** The same for the hot calls: every argument fits int32 or uint32, and so does the result. */
  syscall32(
    number: number,
    a: number,
    b: number,
    c: number,
    d: number,
    e: number,
    f: number,
  ): number;
  /**
   * Foreign memory [address, address + bytes) as an ArrayBuffer; nothing is copied and nothing is
   * freed when it is collected. The caller keeps the mapping alive for as long as views are used.
   */
  view(address: number, bytes: number): ArrayBuffer;
}

/** What a thread gets at its start, beside its driver. `data` is structured-cloneable. */
export interface ThreadStart {
  readonly data: unknown;
  /** Messages from main, taken without the runtime's event loop; undefined when there is none. */
  receive(): unknown;
  /** Sends to main; delivered although this thread never returns to its event loop. */
  send(message: unknown): void;
}

/** Which worker a thread runs; each runtime driver has one entry file per kind. */
export type ThreadKind = "iothread" | "offload";

/** A thread as its starter sees it. Stopping is cooperative: a message, then the thread returns. */
export interface Thread {
  send(message: unknown): void;
  onMessage: (message: unknown) => void;
  /** The thread failed: an exception that nothing caught. */
  onError: (error: Error) => void;
  /** The thread ended, by itself or after an error. */
  onExit: () => void;
  /** The process may end while this thread lives. */
  unref(): void;
}

/** One connected byte stream of the control plane (QMP), or the process's stdio. */
export interface Stream {
  /** Bytes arrived. The array is the receiver's. */
  onData: (bytes: Uint8Array) => void;
  /** The peer sends no more, and may still take what is written. By default the stream ends. */
  onEnd: () => void;
  /** The stream is gone, both ways; called once. */
  onClose: () => void;
  write(bytes: Uint8Array): void;
  /** Bytes written and not yet taken by the peer. */
  readonly pendingBytes: number;
  /** Stops and resumes the flow of onData. */
  pause(): void;
  resume(): void;
  /** Sends what is pending, then closes; a peer that takes nothing is given up soon. */
  end(): void;
  destroy(): void;
  /** Of sockets, where known: unnamed ends have none. */
  readonly names?: { readonly local: string; readonly peer: string } | undefined;
}

export type SocketAddress =
  /** `path` beginning with NUL is an abstract name. */
  | { readonly type: "unix"; readonly path: string }
  | { readonly type: "inet"; readonly host: string; readonly port: number }
  /** An inherited socket; listening for listen(), connected for connect(). */
  | { readonly type: "fd"; readonly fd: number };

export interface Listener {
  /** Of an inet socket: the port, which the kernel may have chosen. */
  readonly port: number | undefined;
  onConnection: (stream: Stream) => void;
  /** Stops listening; a unix path that it made is removed. Open streams stay. */
  close(): void;
}

/** Stream sockets on the runtime's event loop. Failures reject with an Error that has `code`. */
export interface Sockets {
  listen(address: SocketAddress): Promise<Listener>;
  connect(address: SocketAddress, options?: { readonly noDelay?: boolean }): Promise<Stream>;
  /** Host name to numeric addresses, in the resolver's order. */
  resolve(host: string): Promise<{ address: string; family: 4 | 6 }[]>;
}

/** Files as streams. Descriptors are the runtime's own: no system call may be given them. */
export interface Files {
  /** Not blocking. Flags as the kernel has them. Throws an Error with a `code`. */
  open(path: string, flags: number): number;
  close(fd: number): void;
  /** The descriptors are the stream's from now on, and may be one and the same. */
  stream(inputFd: number | undefined, outputFd: number): Stream;
}

/** HTTP serving of a fetch handler on a listening address. */
export interface Http {
  serve(
    address: SocketAddress,
    handler: (request: Request) => Response | Promise<Response>,
  ): Promise<{ close(): void }>;
}

export interface Process {
  /** Arguments after the program's own. */
  readonly args: readonly string[];
  readonly pid: number;
  env(name: string): string | undefined;
  onSignal(name: "SIGINT" | "SIGTERM" | "SIGHUP" | "SIGUSR1", handler: () => void): void;
  stdin(): Stream;
  stdout(text: string): void;
  stderr(text: string): void;
  /** Ends the process when what is written has drained. */
  exit(code: number): void;
  /** Ends it now, whatever any thread does. */
  exitNow(code: number): never;
  /** The standard descriptors, and those that the runtime has made of them for itself. */
  standardFds(): readonly number[];
  cwd(): string;
  chdir(path: string): void;
  /**
   * Starts the same program with the same arguments, standard streams and inherited descriptors in
   * a session of its own. `readyVariable` gets in its environment the number of a descriptor to
   * which it writes a line when it is ready: this resolves with undefined then, or with its exit
   * code when it ends before that.
   */
  startAgain(readyVariable: string): Promise<number | undefined>;
  /** Runs a program to its end. It inherits `fd`, if any, as its descriptor 3. */
  run(program: string, args: readonly string[], options?: RunOptions): Promise<RunResult>;
}

export interface RunOptions {
  readonly fd?: number;
  /** Added to the environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** Then it is killed. */
  readonly timeoutMs?: number;
}

export interface RunResult {
  /** Null: a signal ended it, or it could not be started. */
  readonly code: number | null;
  /** Its beginning; why it could not be started. */
  readonly stderr: string;
}

export interface Clock {
  /** Monotonic, nanoseconds, as a safe number. */
  nowNs(): number;
  /** Real time in microseconds since 1970, as a safe number. */
  realTimeUs(): number;
}

/** What every thread has. */
export interface ThreadDriver {
  /** With its version. */
  readonly name: string;
  readonly arch: "x64" | "arm64";
  readonly ffi: Ffi;
  readonly clock: Clock;
  /** Also in a thread: an iothread starts its own offload threads. */
  startThread(kind: ThreadKind, data: unknown): Thread;
  /** Resolves when all microtasks, and those that they queue, have run. About a microsecond. */
  runMicrotasks(): Promise<void>;
  env(name: string): string | undefined;
  stderr(text: string): void;
}

/** What only the main thread has. */
export interface RuntimeDriver extends ThreadDriver {
  readonly sockets: Sockets;
  readonly files: Files;
  readonly http: Http;
  readonly process: Process;
}
