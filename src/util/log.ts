/** What the operator reads on stderr: one line per message. Thread: any. */

export type LogLevel = "error" | "warn" | "info";
export type Log = (level: LogLevel, text: string) => void;

const SEVERITY: Readonly<Record<LogLevel, number>> = { error: 0, warn: 1, info: 2 };

/**
 * Writes what is at least as severe as `levelMin`: "outport: text" for errors, as QSD has
 * "program: message"; "outport: warning: text" and "outport: info: text" for the rest.
 */
export function makeLog(stderr: (text: string) => void, levelMin: LogLevel = "warn"): Log {
  return (level, text) => {
    if (SEVERITY[level] > SEVERITY[levelMin]) return;
    const prefix = level === "error" ? "" : level === "warn" ? "warning: " : "info: ";
    // One message is one line, whatever a peer managed to put into it.
    stderr(`outport: ${prefix}${escapeControls(text)}\n`);
  };
}

function escapeControls(text: string): string {
  return text.replace(
    /\p{Cc}/gu,
    (control) => `\\x${control.codePointAt(0)!.toString(16).padStart(2, "0")}`,
  );
}
