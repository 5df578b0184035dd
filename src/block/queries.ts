/**
 * What there is to know of the block nodes and of who uses them. Thread: main.
 * Spec: qapi/block-core.json query-named-block-nodes, x-debug-query-block-graph, query-block,
 * query-blockstats; QEMU block/qapi.c
 */
import type { IothreadCalls, NodeStatistics } from "../iothread/messages.ts";
import type { BlockDeviceInfo, BlockInfo, ImageInfo, XDbgBlockGraph } from "../qapi/block.ts";
import type { BlockStats } from "../qapi/block-stats.ts";
import type { BlockGraph } from "./graph.ts";
import type { Edge, GraphNode } from "./graph-node.ts";
import { imageFilename } from "./image-names.ts";
import { PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE, PERM_WRITE_UNCHANGED } from "./node.ts";
import { rootUse } from "./permission-update.ts";

/** Of what a host file does not limit. */
const COMMON_LIMITS = { "opt-mem-alignment": 4096, "max-iov": 1024 };

export class BlockQueries {
  #graph: BlockGraph;

  constructor(graph: BlockGraph) {
    this.#graph = graph;
  }

  /** query-named-block-nodes: the newest first. `flat`: without the images behind. */
  namedBlockNodes(flat: boolean): Promise<BlockDeviceInfo[]> {
    return this.#graph.exclusive(async () => {
      const { nodes } = this.#graph;
      const infos = await askAll("nodes-query", nodes);
      for (const node of nodes) node.info = infos.get(node)!;
      return nodes.reverse().map((node) => deviceInfo(node, flat));
    });
  }

  /** query-block: devices with a name, of which there are none. */
  devices(): BlockInfo[] {
    return [];
  }

  /** query-blockstats: of devices, or of every node, the oldest first. */
  blockStats(ofNodes: boolean): Promise<BlockStats[]> {
    if (!ofNodes) return Promise.resolve([]);
    return this.#graph.exclusive(async () => {
      const { nodes } = this.#graph;
      const statistics = await askAll("nodes-statistics", nodes);
      return nodes.map((node) => nodeStats(node, statistics));
    });
  }

  /** x-debug-query-block-graph */
  async blockGraph(): Promise<XDbgBlockGraph> {
    return this.#graph.exclusive(async () => blockGraphOf(this.#graph.nodes));
  }
}

/** What each node says, with one call to each iothread. */
async function askAll<Call extends "nodes-query" | "nodes-statistics">(
  call: Call,
  nodes: readonly GraphNode[],
): Promise<Map<GraphNode, IothreadCalls[Call][1][number]>> {
  const replies = new Map<GraphNode, IothreadCalls[Call][1][number]>();
  await Promise.all(
    [...new Set(nodes.map(({ iothread }) => iothread))].map(async (iothread) => {
      const there = nodes.filter((node) => node.iothread === iothread);
      const nodeNames = there.map(({ nodeName }) => nodeName);
      const answers = await iothread.call(call, { nodeNames });
      for (const [i, node] of there.entries()) replies.set(node, answers[i]!);
    }),
  );
  return replies;
}

function deviceInfo(node: GraphNode, flat: boolean): BlockDeviceInfo {
  const { definition, driver, info, nodeName } = node;
  const backing = childOf(node, "backing");
  return {
    file: imageFilename(node),
    "node-name": nodeName,
    ro: !info.writable,
    drv: driver.name,
    ...(backing === undefined ? {} : { backing_file: imageFilename(backing) }),
    backing_file_depth: flat ? 0 : imagesBehind(node),
    children: newestFirst(node.children).map(({ role, child }) => ({
      child: role,
      "node-name": child.nodeName,
    })),
    active: node.active,
    encrypted: info.description.image?.encrypted === true,
    detect_zeroes: definition.detectZeroes,
    // Throttling is the business of a filter.
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image: flat ? imageInfo(node) : imageChain(node),
    cache: {
      writeback: true,
      direct: definition.cacheDirect,
      "no-flush": definition.cacheNoFlush,
    },
    write_threshold: node.writeThreshold,
    ...(info.dirtyBitmaps === undefined ? {} : { "dirty-bitmaps": [...info.dirtyBitmaps] }),
  };
}

/** The image and those behind it. */
function imageChain(node: GraphNode): ImageInfo {
  const behind = imageBehind(node);
  const info = imageInfo(node);
  return behind === undefined ? info : { ...info, "backing-image": imageChain(behind) };
}

function imagesBehind(node: GraphNode): number {
  const behind = imageBehind(node);
  return behind === undefined ? 0 : 1 + imagesBehind(behind);
}

function imageInfo(node: GraphNode): ImageInfo {
  const { actualBytes, image } = node.info.description;
  return {
    filename: imageFilename(node),
    format: node.driver.name,
    "virtual-size": node.info.bytes,
    ...(actualBytes === undefined ? {} : { "actual-size": actualBytes }),
    ...imageFacts(node),
    ...image,
    limits: limitsOf(node) as unknown as ImageInfo["limits"],
  };
}

/** Facts about an image that hold also for what only passes it on. */
export function imageFacts(node: GraphNode): Partial<ImageInfo> {
  const image: Partial<ImageInfo> = node.info.description.image ?? {};
  const below = primaryChild(node);
  if (image["dirty-flag"] === undefined && below !== undefined) return imageFacts(below);
  const { "dirty-flag": dirtyFlag, "cluster-size": clusterBytes, snapshots } = image;
  return {
    ...(dirtyFlag === undefined ? {} : { "dirty-flag": dirtyFlag }),
    ...(clusterBytes === undefined ? {} : { "cluster-size": clusterBytes }),
    ...(snapshots === undefined ? {} : { snapshots }),
  };
}

/** BlockLimitsInfo: a node's own over what those below ask for together. */
function limitsOf(node: GraphNode): Record<string, number> {
  const limits: Record<string, number> = { "request-alignment": 1, ...COMMON_LIMITS };
  for (const { child } of node.children) {
    for (const [name, value] of Object.entries(limitsOf(child))) {
      const before = limits[name];
      if (name === "request-alignment" || name === "write-zeroes-alignment") continue;
      if (before === undefined) limits[name] = value;
      else
        limits[name] = name.startsWith("max-") ? Math.min(before, value) : Math.max(before, value);
    }
  }
  return { ...limits, ...node.info.description.limits };
}

function nodeStats(
  node: GraphNode,
  statistics: ReadonlyMap<GraphNode, NodeStatistics>,
): BlockStats {
  const { nodeName, driver } = node;
  const { stats, driverSpecific } = statistics.get(node)!;
  const below = primaryChild(node);
  return {
    "node-name": nodeName,
    stats,
    ...(driverSpecific === null
      ? {}
      : { "driver-specific": { driver: driver.name, ...driverSpecific } }),
    ...(below === undefined ? {} : { parent: nodeStats(below, statistics) }),
  };
}

/** The child with this node's data. */
function primaryChild(node: GraphNode): GraphNode | undefined {
  return childOf(node, node.driver.filtered ?? "file");
}

/** What shows behind the image: what a filter filters, or the backing image. */
function imageBehind(node: GraphNode): GraphNode | undefined {
  return childOf(node, node.driver.filtered ?? "backing");
}

function childOf(node: GraphNode, role: string): GraphNode | undefined {
  return node.children.find((edge) => edge.role === role)?.child;
}

function newestFirst<T>(items: readonly T[]): T[] {
  return [...items].reverse();
}

type Xdbg = XDbgBlockGraph;

/** Ids are given as things are met, and what is met last comes first, as with QSD. */
function blockGraphOf(all: readonly GraphNode[]): Xdbg {
  const ids = new Map<Edge | GraphNode, number>();
  const idOf = (one: Edge | GraphNode): number => {
    const id = ids.get(one) ?? ids.size + 1;
    ids.set(one, id);
    return id;
  };
  const nodes: Xdbg["nodes"] = [];
  const edges: Xdbg["edges"] = [];
  const addEdge = (parent: number, edge: Edge): void => {
    const { role: name, child } = edge;
    const { used, shared: others } = edge.parent === null ? rootUse(edge) : edge.permissions;
    const [perm, shared] = [permissionList(used), permissionList(others)];
    edges.unshift({ parent, child: idOf(child), name, perm, "shared-perm": shared });
  };
  const roots = all.flatMap(({ parents }) => parents.filter(({ parent }) => parent === null));
  for (const root of roots.sort((one, other) => one.serial - other.serial)) {
    // An export or job: it has no name there.
    nodes.unshift({ id: idOf(root), type: "block-backend", name: "" });
    addEdge(idOf(root), root);
  }
  for (const node of all) {
    nodes.unshift({ id: idOf(node), type: "block-driver", name: node.nodeName });
    for (const edge of newestFirst(node.children)) addEdge(idOf(node), edge);
  }
  return { nodes, edges };
}

const PERMISSIONS = [
  ["resize", PERM_RESIZE],
  ["write-unchanged", PERM_WRITE_UNCHANGED],
  ["write", PERM_WRITE],
  ["consistent-read", PERM_CONSISTENT_READ],
] as const;

function permissionList(bits: number): (typeof PERMISSIONS)[number][0][] {
  return PERMISSIONS.filter(([, bit]) => (bits & bit) !== 0).map(([name]) => name);
}
