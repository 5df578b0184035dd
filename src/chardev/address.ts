/**
 * The addresses of socket devices: as options have them, as sockets take them, as query-chardev
 * shows them. Pure.
 * Spec: QEMU chardev/char-socket.c
 */
import type { ListenAddress } from "../iothread/messages.ts";
import type { SocketAddress as Wire } from "../qapi/sockets.ts";

/** Where to listen or connect to. */
export interface AddressPlan {
  /** How messages name it. */
  readonly label: string;
  /** Sets of addresses to try, ports in their order; a name may have several addresses. */
  readonly choices: readonly (readonly ListenAddress[])[];
}

/** `listening` adds what servers have. */
export function filenameOf(address: Wire, listening: boolean): string {
  const server = listening ? ",server=on" : "";
  switch (address.type) {
    case "inet":
      return `tcp:${address.host}:${address.port}${server}`;
    case "unix": {
      const tight = address.tight === false ? "" : ",tight=on";
      const abstract = address.abstract === true ? `,abstract=on${tight}` : "";
      return `unix:${address.path}${abstract}${server}`;
    }
    case "fd":
      return `fd:${address.str}${server}`;
    case "vsock":
      return `vsock:${address.cid}:${address.port}`;
  }
}
