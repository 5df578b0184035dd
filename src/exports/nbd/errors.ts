/**
 * The border of NBD: which error value a client gets for an errno, and the text that goes with it
 * in structured and extended replies. Thread: iothread.
 *
 * Spec: NBD proto.md "Error values"
 */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  NBD_SUCCESS,
} from "../../abi/nbd.ts";
import {
  EDQUOT,
  EFBIG,
  EIO,
  ENOMEM,
  ENOSPC,
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  EROFS,
  ESHUTDOWN,
} from "../../runtime/errno.ts";

/** The NBD_E* value for a result of the data plane: 0 or a negative errno. */
export function nbdError(result: number): number {
  switch (-result) {
    case 0:
      return NBD_SUCCESS;
    case EPERM:
    case EROFS:
      return NBD_EPERM;
    case EIO:
      return NBD_EIO;
    case ENOMEM:
      return NBD_ENOMEM;
    case EDQUOT:
    case EFBIG:
    case ENOSPC:
      return NBD_ENOSPC;
    case EOVERFLOW:
      return NBD_EOVERFLOW;
    case EOPNOTSUPP:
      return NBD_ENOTSUP;
    case ESHUTDOWN:
      return NBD_ESHUTDOWN;
    default:
      return NBD_EINVAL;
  }
}

/** What to say when carrying out a command failed. */
export function failureMessage(command: number): string {
  switch (command) {
    case NBD_CMD_READ:
      return "reading from file failed";
    case NBD_CMD_WRITE:
    case NBD_CMD_WRITE_ZEROES:
      return "writing to file failed";
    case NBD_CMD_FLUSH:
      return "flush failed";
    case NBD_CMD_TRIM:
      return "discard failed";
    case NBD_CMD_CACHE:
      return "caching data failed";
    case NBD_CMD_BLOCK_STATUS:
      return "can't get block status";
    default:
      return "";
  }
}
