import { describe, expect, test } from "bun:test";
import { RequestFence } from "../../../src/block/request-fence.ts";
import { RequestTable } from "../../../src/io/requests.ts";

const owner = { onRequestDone: () => {} };

describe("RequestFence", () => {
  test("waits for those that were in flight, not for later ones", () => {
    const requests = new RequestTable(8);
    const [first, second] = [requests.allocate(owner), requests.allocate(owner)];
    const fence = new RequestFence(requests);
    expect(fence.hasPassed()).toBe(false);
    requests.free(second);
    // The slot is used again at once.
    expect(requests.allocate(owner)).toBe(second);
    expect(fence.hasPassed()).toBe(false);
    requests.free(first);
    expect(fence.hasPassed()).toBe(true);
    expect(requests.inUse).toBe(1);
  });

  test("has passed when nothing was in flight", () => {
    expect(new RequestFence(new RequestTable(8)).hasPassed()).toBe(true);
  });
});
