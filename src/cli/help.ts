/** The text of --help and --version. Pure. */
import { BUILD, VERSION } from "../util/version.ts";

export const PROGRAM = "outport";

export function versionText(): string {
  const build = BUILD === "" ? "" : ` (${BUILD})`;
  return `${PROGRAM} version ${VERSION}${build}, compatible with qemu-storage-daemon 11.1.3\n`;
}

export function helpText(): string {
  return `Usage: ${PROGRAM} [options]
Export disk images over NBD

  -h, --help             print this text and exit
  -V, --version          print the version and exit

  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,driver specific parameters...]
                         open a block node

  --chardev stdio,id=<id>
  --chardev socket,id=<id>,path=<path>[,abstract=on|off]
             [,server=on|off][,wait=on|off]
  --chardev socket,id=<id>,host=<host>,port=<port>
             [,server=on|off][,wait=on|off]
                         make a character device for a monitor

  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off][,writethrough=on|off]
           [,description=<text>][,allocation-depth=on|off]
           [,iothread=<id>][,fixed-iothread=on|off]
                         export a block node over NBD
                         (needs --nbd-server before it)

  --monitor [chardev=]<id>[,mode=control][,pretty=on|off]
                         run a QMP monitor on a character device

  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,max-connections=<n>][,handshake-max-seconds=<n>]
  --nbd-server addr.type=unix,addr.path=<path>
               [,max-connections=<n>][,handshake-max-seconds=<n>]
                         start the NBD server

  --object iothread,id=<id>[,poll-max-ns=<n>]
                         create an object: iothread is a thread for nodes
                         and their exports

  --pidfile <path>       write the process id to a file when ready

Options take effect in the order in which they are given.
`;
}
