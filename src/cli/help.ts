/** The text of --help and --version. Pure. Spec: QEMU docs/tools/qemu-storage-daemon.rst */
import { LOG_FORMATS, LOG_LEVELS } from "../util/log.ts";
import { BUILD, VERSION } from "../util/version.ts";

export const PROGRAM = "outport";

export function versionText(): string {
  const build = BUILD === "" ? "" : ` (${BUILD})`;
  return `${PROGRAM} version ${VERSION}${build}, compatible with qemu-storage-daemon 11.1.3\n`;
}

/** Laid out as QSD's, so that scripts that look for an option find it. */
export function helpText(): string {
  return `Usage: ${PROGRAM} [options]
       ${PROGRAM} [--format <format>] [--read-only] [--socket <path>] <image>
Export disk images, as QEMU's storage daemon does

  -h, --help             display this help and exit
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                         specify tracing options
  -V, --version          output version information and exit

  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,driver specific parameters...]
                         configure a block backend

  --chardev <options>    configure a character device backend
  --chardev help         list character device backends

  --daemonize            daemonize the process, and have the parent exit
                         once startup is complete

  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off][,writethrough=on|off]
           [,description=<text>][,allocation-depth=on|off]
           [,iothread=<id>][,fixed-iothread=on|off]
                         export the specified block node over NBD
                         (requires --nbd-server)

  --export [type=]vhost-user-blk,id=<id>,node-name=<node-name>,
           addr.type=unix,addr.path=<path>|addr.type=fd,addr.str=<fd>
           [,writable=on|off][,writethrough=on|off]
           [,logical-block-size=<bytes>][,num-queues=<n>][,serial=<text>]
           [,iothread=<id>][,fixed-iothread=on|off]
                         export the specified block node as a virtio block
                         device for virtual machines

  --monitor [chardev=]name[,mode=control][,pretty[=on|off]]
                         configure a QMP monitor

  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,max-connections=<n>][,handshake-max-seconds=<n>]
  --nbd-server addr.type=unix,addr.path=<path>
               [,max-connections=<n>][,handshake-max-seconds=<n>]
                         start an NBD server for exporting block nodes;
                         once more: let it listen on another address, too

  --object help          list object types that can be added
  --object <type>,help   list properties for the given object type
  --object <type>[,<property>=<value>...]
                         create a new object of type <type>, setting
                         properties in the order they are specified. Note
                         that the 'id' property must be set.

  --pidfile <path>       write process ID to a file after startup

${ownOptions()}Options take effect in the order in which they are given.
`;
}

function ownOptions(): string {
  return `Of ${PROGRAM} only:

  <image>                serve this image over NBD; its format is guessed, and
                         what has none that is known is a raw disk, read-only
  --format raw|qcow2|vdi|vhdx|vmdk|vpc
                         the format of the image; writing to a raw disk, and
                         files that the image names, want it given
  --read-only            serve the image for reading only
  --socket <path>        where to listen for it
                         ($XDG_RUNTIME_DIR or /tmp, outport-<pid>.sock)

  --log-format ${LOG_FORMATS.join("|")}
                         how diagnostics look on standard error (${LOG_FORMATS[0]})
  --log-level ${LOG_LEVELS.join("|")}
                         which ones appear there (warn)

`;
}
