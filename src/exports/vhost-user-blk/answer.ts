/** What a session says to a message. Thread: iothread. */

/** What a message is answered with. */
export type Answer =
  /** It is done; an acknowledgement when the front-end wants one. */
  | null
  /** The fds are closed once they are sent. */
  | { readonly payload: Uint8Array; readonly fds?: readonly number[] }
  /** It can't be done: the front-end is told, or dropped when it doesn't want to be told. */
  | { readonly refusal: string }
  /** The front-end broke the rules and is dropped. */
  | { readonly fault: string };
