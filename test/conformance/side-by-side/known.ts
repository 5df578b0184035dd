/** Where outport is to answer otherwise than qemu-storage-daemon: what exploring passes by. */

interface Known {
  readonly why: string;
  /** The daemons are in different states from then on: nothing more can be compared. */
  readonly parts?: boolean;
  /** The request and both answers, as JSON texts. */
  is(request: string, ours: string, theirs: string): boolean;
}

export const KNOWN: readonly Known[] = [
  {
    why: "QSD deletes an iothread in use, and crashes later",
    parts: true,
    is: (request, ours) => request.includes('"object-del"') && ours.includes("is in use"),
  },
  {
    why: "QSD aborts",
    parts: true,
    is: (request, _ours, theirs) => theirs.includes("closed") && request.includes('"options":[]'),
  },
  {
    why: "QSD crashes when it merges no bitmaps, or can't enable one in a transaction",
    parts: true,
    is: (request, _ours, theirs) =>
      theirs.includes("closed") && /-bitmap-(merge|enable)"/.test(request),
  },
  {
    why: "QSD never answers again after it has not found a pr-manager",
    parts: true,
    is: (_request, ours) => ours.includes("No persistent reservation manager"),
  },
  {
    why: "QSD aborts for a null-co with a negative size",
    parts: true,
    is: (_request, ours, theirs) => theirs.includes("closed") && ours.includes("of range"),
  },
  {
    why: "outport flattens an empty object into nothing",
    parts: true,
    is: (request, _ours, theirs) => request.includes("{}") && theirs.includes("the option 'cache'"),
  },
  {
    why: "QSD lists authz-listfile and calls it by another name",
    parts: true,
    is: (request) => request.includes('"authz-listfile"'),
  },
  {
    why: "QSD leaves a node active when it could not be exported",
    parts: true,
    is: (_request, ours, theirs) => ours.replaceAll('"active":false', '"active":true') === theirs,
  },
  {
    why: "QSD sets properties in the order of a hash table",
    parts: true,
    is: (request) => request.includes('"limits"') && request.includes('"x-'),
  },
  {
    why: "of several faults of a tree of nodes, or of reopening, QSD names another one",
    is: (request, ...answers) =>
      /-reopen|"driver".*"driver"|blkdebug/.test(request) && bothFailed(answers),
  },
  {
    why: "QSD lets nodes that are opened look at each other, and sometimes crashes",
    parts: true,
    is: (_request, ours, theirs) =>
      ours.includes("Cannot find device=") && (theirs.includes("closed") || bothFailed([theirs])),
  },
  {
    why: "QSD takes a path from whoever listens there",
    parts: true,
    is: (_request, ours) => ours.includes("Address already in use"),
  },
  {
    why: "QSD closes the device that a failing chardev-change names",
    parts: true,
    is: (_request, ours, theirs) =>
      ours.includes("already exists") ||
      (ours.length > theirs.length && ours.includes('"label"') && theirs.includes('"label"')),
  },
  {
    why: "QSD does not know force-share and active again",
    parts: true,
    is: (request, _ours, theirs) =>
      request.includes("-reopen") && /'(force-share|active)'/.test(theirs),
  },
  {
    why: "QSD leaves a node active when it could not be exported, as a resize shows",
    parts: true,
    is: (_request, ours) => ours.includes("unavailable on inactive node"),
  },
  {
    why: "QSD lists a node in the middle of being opened before its children, or after",
    parts: true,
    is: (request, ours, theirs) =>
      /query-(named|block-graph)/.test(request) && sortedLetters(ours) === sortedLetters(theirs),
  },
  {
    why: "QSD tells secrets, or that there is none",
    is: (request, ours) => /"qom-(list-)?get"/.test(request) && ours.includes('"data"'),
  },
  {
    why: "outport has a serial number, and as many queues as a guest can use",
    parts: true,
    is: (_request, ours, theirs) =>
      theirs.includes("'serial' is unexpected") || ours.includes("num-queues must be at most"),
  },
  {
    why: "QSD counts nothing for exports",
    is: (request) => request.includes("query-blockstats"),
  },
  {
    why: "the host chooses the port",
    is: (_request, ours, theirs) => withoutPorts(ours) === withoutPorts(theirs),
  },
  {
    why: "outport has no such character devices",
    parts: true,
    is: (_request, ours) =>
      /'(tn3270|websocket|telnet|tls-creds|log[a-z]+)' is not supported/.test(ours),
  },
  {
    why: "outport has no such devices",
    is: (request) => /"query-chardev-backends"|"qom-list-types"/.test(request),
  },
  {
    why: "outport says why",
    is: (_request, ours) => ours.includes("PAM is not supported"),
  },
];

function withoutPorts(text: string): string {
  return text.replaceAll(/127\.0\.0\.1:[0-9]+/g, "");
}

function bothFailed(answers: readonly string[]): boolean {
  return answers.every((answer) => answer.startsWith('{"error"'));
}

function sortedLetters(text: string): string {
  return [...text.replaceAll(/[0-9]/g, "")].sort().join("");
}
