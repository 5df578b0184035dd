/** Which outport this is. */

/** Set by the build; nothing defines it when run from source. */
declare const OUTPORT_BUILD: string | undefined;

/** "major.minor.micro", the one of package.json. */
export const VERSION = "0.1.0";

/** The commit that was built, as `git describe` names it; empty where that is not known. */
export const BUILD: string = typeof OUTPORT_BUILD === "string" ? OUTPORT_BUILD : "";
