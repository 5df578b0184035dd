/** Both kinds of virtqueue against a driver that keeps to the rules, and against lies. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT } from "../../../src/abi/virtio-ring.ts";
import { EFAULT, EINVAL } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { CHAIN_PIECES_MAX, Chain } from "../../../src/virtio/chain.ts";
import { GuestMemory } from "../../../src/virtio/guest-memory.ts";
import { InflightArea } from "../../../src/virtio/inflight.ts";
import { PackedRing } from "../../../src/virtio/packed-ring.ts";
import {
  BROKEN,
  EMPTY,
  FOUND,
  type Virtqueue,
  type VirtqueueOptions,
} from "../../../src/virtio/queue.ts";
import { SplitRing } from "../../../src/virtio/split-ring.ts";
import { driver } from "../../support/driver.ts";
import {
  type DriverQueue,
  GuestRam,
  makeDriver,
  type PackedDriver,
  type Piece,
  SplitDriver,
} from "../../support/virtio-driver.ts";

const MiB = 1024 * 1024;
const SIZE = 8;
const linux = new Linux(driver.ffi, driver.arch);

function open(packed: boolean, options: VirtqueueOptions): Virtqueue | number {
  return packed ? PackedRing.open(options) : SplitRing.open(options);
}

function opened(packed: boolean, options: VirtqueueOptions): Virtqueue {
  const ring = open(packed, options);
  if (typeof ring === "number") throw new Error(`open() said ${ring}`);
  return ring;
}

for (const packed of [false, true]) {
  for (const eventIdx of [false, true]) {
    describe(`${packed ? "PackedRing" : "SplitRing"}${eventIdx ? " with EVENT_IDX" : ""}`, () => {
      let ram: GuestRam;
      let memory: GuestMemory;
      let front: DriverQueue;
      let ring: Virtqueue;
      let options: VirtqueueOptions;
      const chain = new Chain();

      beforeEach(() => {
        ram = new GuestRam(linux, 4 * MiB);
        memory = new GuestMemory(linux);
        memory.add(ram.region());
        front = makeDriver(ram, packed, { size: SIZE, eventIdx });
        const base = packed ? 0x8000_8000 : 0;
        const { addresses } = front;
        options = { memory, size: SIZE, addresses, eventIdx, indirect: true, base, inflight: null };
        ring = opened(packed, options);
      });
      afterEach(() => {
        memory.clear();
        ram.close();
      });

      const piece = (bytes: number, write = false): Piece => {
        return { at: ram.allocate(bytes, 1), bytes, write };
      };

      /** Takes what is next; its ticket. */
      function take(): number {
        expect(ring.peek(chain)).toBe(FOUND);
        ring.take(chain);
        return chain.ticket;
      }

      test("finds chains in order, as often as asked until they are taken", () => {
        expect([ring.peek(chain), ring.hasWork]).toEqual([EMPTY, false]);
        const first = [piece(16), piece(100), piece(5, true)];
        front.add(first);
        front.add([piece(7, true)], true);
        for (let i = 0; i < 2; i++) {
          expect([ring.hasWork, ring.peek(chain)]).toEqual([true, FOUND]);
          expect([chain.count, chain.readableCount]).toEqual([3, 2]);
          expect([chain.readableBytes, chain.writableBytes]).toEqual([116, 5]);
          expect([...chain.bytes.slice(0, 3)]).toEqual([16, 100, 5]);
          first.forEach((one, index) => {
            expect(chain.guestAddress[index]).toBe(ram.guestAddress + one.at);
            expect(chain.hostAddress[index]).toBe(
              memory.hostAddressOf(ram.userAddress + one.at, 1),
            );
          });
        }
        ring.take(chain);
        expect(take()).not.toBe(-1);
        expect([chain.count, chain.writableBytes]).toEqual([1, 7]);
        expect([ring.peek(chain), ring.inFlight]).toEqual([EMPTY, 2]);
      });

      test("shows used elements when they are published, in the order of completion", () => {
        const ids = [0, 1, 2].map(() => front.add([piece(8, true)]));
        const tickets = ids.map(take);
        ring.complete(tickets[2]!, 3);
        ring.complete(tickets[0]!, 1);
        expect(front.collect()).toEqual([]);
        ring.publish();
        expect(front.collect()).toEqual([
          { id: ids[2]!, bytes: 3 },
          { id: ids[0]!, bytes: 1 },
        ]);
        expect(ring.inFlight).toBe(1);
        ring.complete(tickets[1]!, 0);
        ring.publish();
        expect(front.collect()).toEqual([{ id: ids[1]!, bytes: 0 }]);
        expect([ring.inFlight, ring.publish()]).toEqual([0, false]);
      });

      test("goes round and round, with any lengths of chains, out of order", () => {
        const pending = new Map<number, number>();
        for (let i = 0, added = 0, done = 0; done < 70_000; i++) {
          while (front.add(Array(1 + (added % 3)).fill(piece0), added % 5 === 0) >= 0) added++;
          while (ring.peek(chain) === FOUND) {
            ring.take(chain);
            pending.set(chain.ticket, i);
          }
          const tickets = [...pending.keys()];
          if (i % 2 === 1) tickets.reverse();
          for (const ticket of tickets.slice(0, 1 + (i % tickets.length))) {
            ring.complete(ticket, ticket + 1);
            pending.delete(ticket);
          }
          ring.publish();
          done += front.collect().length;
        }
        expect(ring.isBroken).toBe(false);
      });
      const piece0: Piece = { at: 3 * MiB, bytes: 10, write: true };

      test("publish() says when the driver wants to know", () => {
        const next = (wanted: boolean) => {
          front.add([piece0]);
          front.wantCall(wanted);
          ring.complete(take(), 0);
          const asked = ring.publish();
          front.collect();
          return asked;
        };
        // The first time it is told anyhow.
        expect(next(false)).toBe(true);
        for (let i = 0; i < 40; i++) {
          expect([i, next(false), next(true)]).toEqual([i, false, true]);
        }
      });

      test("tells of a batch that the awaited element is in", () => {
        front.add([piece0]);
        ring.complete(take(), 0);
        ring.publish();
        front.collect();
        for (let i = 0; i < 20; i++) {
          front.wantCall(true);
          const tickets = [0, 1, 2].map(() => {
            front.add([piece0]);
            return take();
          });
          for (const ticket of tickets) ring.complete(ticket, 0);
          expect(ring.publish()).toBe(true);
          front.add([piece0]);
          ring.complete(take(), 0);
          if (eventIdx) expect(ring.publish()).toBe(false);
          else ring.publish();
          front.collect();
        }
      });

      test("suppressKicks() and allowKicks() reach the driver", () => {
        for (let i = 0; i < 3 * SIZE; i++) {
          expect(ring.allowKicks()).toBe(false);
          front.add([piece0]);
          expect(front.mustKick()).toBe(true);
          ring.suppressKicks();
          front.add([piece0]);
          expect(front.mustKick()).toBe(false);
          expect(ring.allowKicks()).toBe(true);
          for (let n = 0; n < 2; n++) ring.complete(take(), 0);
          ring.publish();
          front.collect();
        }
      });

      test("goes on from its base in another ring", () => {
        for (let i = 0; i < 13; i++) {
          front.add([piece0, piece0]);
          ring.complete(take(), i);
          ring.publish();
          expect(front.collect()).toHaveLength(1);
          ring = opened(packed, { ...options, base: ring.base });
        }
        expect(ring.peek(chain)).toBe(EMPTY);
      });

      test("splits pieces where regions meet", () => {
        memory.clear();
        memory.add(ram.region(0, 3 * MiB));
        memory.add(ram.region(3 * MiB, MiB));
        ring = opened(packed, options);
        front.add([{ at: 3 * MiB - 5, bytes: 12, write: true }], true);
        take();
        expect([chain.count, chain.readableCount, chain.writableBytes]).toEqual([2, 0, 12]);
        expect([...chain.bytes.slice(0, 2)]).toEqual([5, 7]);
      });

      test("reads indirect tables that lie anywhere", () => {
        memory.clear();
        const table = 3 * MiB - 24;
        memory.add(ram.region(0, 3 * MiB));
        memory.add(ram.region(3 * MiB, MiB));
        ring = opened(packed, options);
        for (const at of [table, 2 * MiB + 1]) {
          const id = front.add([piece(3), piece(4)], true);
          const [desc, moved] = moveTable(id, at);
          expect(desc).toBeGreaterThanOrEqual(0);
          expect(moved).toBe(32);
          ring.complete(take(), 0);
          expect([...chain.bytes.slice(0, chain.count)]).toEqual([3, 4]);
          ring.publish();
          front.collect();
        }
      });

      /** Moves the indirect table of the chain just added: where its descriptor is, its length. */
      function moveTable(id: number, at: number): [number, number] {
        const desc = descOf(id);
        const old = Number(ram.view.getBigUint64(desc, true)) - ram.guestAddress;
        const bytes = ram.view.getUint32(desc + 8, true);
        ram.u8.copyWithin(at, old, old + bytes);
        ram.setU64(desc, ram.guestAddress + at);
        return [desc, bytes];
      }

      /** Of the chain just added with one descriptor. */
      function descOf(id: number): number {
        if (front instanceof SplitDriver) return front.desc + id * 16;
        const queue = front as PackedDriver;
        for (let i = 0; i < SIZE; i++) {
          const at = queue.desc + i * 16;
          const isUsed = (ram.view.getUint16(at + 14, true) & 0x8080) % 0x8080 === 0;
          if (!isUsed && ram.view.getUint16(at + 12, true) === id) return at;
        }
        return -1;
      }

      describe("breaks when the driver", () => {
        afterEach(() => {
          expect([ring.peek(chain), ring.isBroken, ring.hasWork]).toEqual([BROKEN, true, false]);
          expect(ring.allowKicks()).toBe(false);
        });

        test("has the device read behind what it writes", () => {
          front.add([piece(8, true), piece(8)]);
        });
        test("does the same in an indirect table", () => {
          front.add([piece(8, true), piece(8)], true);
        });
        test("names no bytes", () => {
          front.add([piece(16), piece(0), piece(1, true)]);
        });
        test("names memory that is not there", () => {
          front.add([{ at: 4 * MiB - 8, bytes: 9, write: true }]);
        });
        test("names addresses that overflow", () => {
          const desc = descOf(front.add([piece(8)]));
          ram.u32.fill(0xffff_ffff, desc / 4, desc / 4 + 3);
        });
        test("names an indirect table in another", () => {
          const desc = descOf(front.add([piece(8)], true));
          const table = Number(ram.view.getBigUint64(desc, true)) - ram.guestAddress;
          const flags = packed ? 14 : 12;
          ram.view.setUint16(table + flags, VIRTQ_DESC_F_INDIRECT, true);
        });
        test("has a table of no descriptors", () => {
          ram.view.setUint32(descOf(front.add([piece(8)], true)) + 8, 0, true);
        });
        test("has a table of odd length", () => {
          ram.view.setUint32(descOf(front.add([piece(8)], true)) + 8, 17, true);
        });
        test("has a table that is too long", () => {
          const desc = descOf(front.add([piece(8)], true));
          ram.view.setUint32(desc + 8, 2 * MiB, true);
        });
        test("has a table that is not there", () => {
          ram.setU64(descOf(front.add([piece(8)], true)), 0x1000);
        });
        test("has more pieces than one request may", () => {
          const table = ram.allocate((CHAIN_PIECES_MAX + 1) * 16);
          const desc = descOf(front.add([piece(8)], true));
          ram.setU64(desc, ram.guestAddress + table);
          ram.view.setUint32(desc + 8, (CHAIN_PIECES_MAX + 1) * 16, true);
          for (let i = 0; i <= CHAIN_PIECES_MAX; i++) {
            ram.setU64(table + i * 16, ram.guestAddress);
            ram.view.setUint32(table + i * 16 + 8, 1, true);
            if (!packed) ram.view.setUint32(table + i * 16 + 12, ((i + 1) << 16) | 1, true);
          }
        });
        test("uses indirect tables that were not negotiated", () => {
          ring = opened(packed, { ...options, indirect: false });
          front.add([piece(8)], true);
        });
        test("lets the ring's memory go", () => {
          memory.clear();
          expect(ring.remap()).toBe(false);
        });
      });

      test("open() refuses a ring that is not there", () => {
        const { addresses } = options;
        for (const name of ["desc", "avail", "used"] as const) {
          const moved = { ...addresses, [name]: ram.userAddress + 4 * MiB - 2 };
          expect(open(packed, { ...options, addresses: moved })).toBe(-EFAULT);
          const odd = { ...addresses, [name]: addresses[name] + 1 };
          expect(open(packed, { ...options, addresses: odd })).toBe(-EFAULT);
        }
        for (const size of [0, 32_769, 65_536, -1]) {
          expect(open(packed, { ...options, size })).toBe(-EINVAL);
        }
      });

      test("completes what is in flight after it broke", () => {
        const id = front.add([piece(8, true)]);
        const ticket = take();
        front.add([piece(0)]);
        expect(ring.peek(chain)).toBe(BROKEN);
        ring.complete(ticket, 8);
        ring.publish();
        expect(front.collect()).toEqual([{ id, bytes: 8 }]);
      });

      test("completes without its memory", () => {
        front.add([piece(8, true)]);
        const ticket = take();
        memory.clear();
        ring.remap();
        ring.suppressKicks();
        ring.complete(ticket, 8);
        expect([ring.publish(), ring.inFlight]).toEqual([false, 0]);
      });

      describe("with an area for what is in flight", () => {
        let area: InflightArea;
        const shape = { queueCount: 3, queueSize: SIZE, packed };

        beforeEach(() => {
          const fd = InflightArea.create(linux, shape);
          const found = InflightArea.open(linux, fd, shape, {
            offset: 0,
            bytes: InflightArea.bytes(shape),
          });
          linux.close(fd);
          if (typeof found === "number") throw new Error(`open() said ${found}`);
          area = found;
          restart();
        });
        afterEach(() => area.unmap());

        /** A new back-end, told what a front-end knows: nothing of what is in flight. */
        function restart(): void {
          ring = opened(packed, { ...options, inflight: area.region(1, SIZE) });
        }

        test("finds again what was in flight, oldest first, then what is new", () => {
          const ids = [3, 4, 5, 6].map((bytes) => front.add([piece(bytes)]));
          const tickets = ids.map(take);
          ring.complete(tickets[1]!, 0);
          ring.publish();
          front.add([piece(7)]);
          restart();
          expect(ring.resubmitCount).toBe(3);
          const found = [0, 1, 2, 3].map(() => {
            const ticket = take();
            return [ticket, chain.readableBytes] as const;
          });
          expect(found.map(([, bytes]) => bytes)).toEqual([3, 5, 6, 7]);
          expect([ring.peek(chain), ring.resubmitCount]).toEqual([EMPTY, 0]);
          for (const [ticket] of found) ring.complete(ticket, 1);
          expect(ring.publish()).toBe(true);
          expect(front.collect()).toHaveLength(5);
          restart();
          expect([ring.resubmitCount, ring.peek(chain)]).toEqual([0, EMPTY]);
        });

        test("survives being killed again and again", () => {
          const owed = new Map<number, number>();
          let done = 0;
          for (let i = 0; i < 500; i++) {
            for (let id = 0; id >= 0; ) {
              id = front.add(Array(1 + (i % 2)).fill(piece0), i % 3 === 0);
              if (id >= 0) owed.set(id, i);
            }
            const tickets: number[] = [];
            while (tickets.length < 1 + (i % 7) && ring.peek(chain) === FOUND) {
              ring.take(chain);
              tickets.push(chain.ticket);
            }
            expect(ring.isBroken).toBe(false);
            for (const ticket of tickets.reverse().slice(i % 4)) ring.complete(ticket, 0);
            if (i % 5 !== 0) ring.publish();
            for (const { id } of front.collect()) {
              expect(owed.delete(id)).toBe(true);
              done++;
            }
            if (i % 3 !== 1) restart();
          }
          expect(done).toBeGreaterThan(500);
        });

        test("loses nothing and tells nothing twice wherever it is killed", () => {
          const store = Atomics.store;
          let crashes = 0;
          for (let isDone = false; !isDone; crashes++) {
            // It is full.
            const ids = [1, 2, 1, 2, 2].map((count) => front.add(Array(count).fill(piece0)));
            let left = crashes;
            Atomics.store = ((...args: Parameters<typeof store>) => {
              if (left-- === 0) throw new Error("killed");
              return store(...args);
            }) as typeof store;
            try {
              const tickets = ids.map(take);
              for (const index of [2, 0, 1]) ring.complete(tickets[index]!, 0);
              ring.publish();
              for (const index of [3, 4]) ring.complete(tickets[index]!, 0);
              ring.publish();
              isDone = true;
            } catch (error) {
              expect((error as Error).message).toBe("killed");
            } finally {
              Atomics.store = store;
            }
            // The driver goes on meanwhile.
            const found = front.collect().map(({ id }) => id);
            for (let id = front.add([piece0]); id >= 0; id = front.add([piece0])) ids.push(id);
            restart();
            // One by one, so that nothing is covered by a batch.
            while (ring.peek(chain) === FOUND) {
              ring.take(chain);
              ring.complete(chain.ticket, 0);
              ring.publish();
            }
            expect([crashes, ring.isBroken]).toEqual([crashes, false]);
            found.push(...front.collect().map(({ id }) => id));
            expect(found.sort()).toEqual(ids.sort());
          }
          expect(crashes).toBeGreaterThan(8);
        });

        test("refuses an area that is another's", () => {
          front.add([piece(3)]);
          take();
          expect(area.region(3, SIZE)).toBe(null);
          expect(area.region(0, SIZE + 1)).toBe(null);
          const bad = { ...options, inflight: area.region(1, SIZE) };
          new Uint16Array(bad.inflight!)[4] = 2;
          expect(open(packed, bad)).toBe(-EINVAL);
          new Uint16Array(bad.inflight!)[4] = 1;
          new Uint16Array(bad.inflight!)[5] = SIZE - 1;
          expect(open(packed, bad)).toBe(-EINVAL);
        });
      });
    });
  }
}

describe("SplitRing breaks when the driver", () => {
  let ram: GuestRam;
  let memory: GuestMemory;
  let front: SplitDriver;
  let ring: Virtqueue;
  const chain = new Chain();

  beforeEach(() => {
    ram = new GuestRam(linux, MiB);
    memory = new GuestMemory(linux);
    memory.add(ram.region());
    front = new SplitDriver(ram, { size: SIZE, eventIdx: false });
    const { addresses } = front;
    ring = opened(false, {
      memory,
      size: SIZE,
      addresses,
      eventIdx: false,
      indirect: true,
      base: 0,
      inflight: null,
    });
  });
  afterEach(() => {
    expect(ring.peek(chain)).toBe(BROKEN);
    memory.clear();
    ram.close();
  });

  const flagsNext = (index: number, flags: number, next: number) => {
    ram.view.setUint16(front.desc + index * 16 + 12, flags, true);
    ram.view.setUint16(front.desc + index * 16 + 14, next, true);
  };
  const add = () => front.add([0, 1, 2].map((i) => ({ at: i * 8, bytes: 8, write: false })));

  test("makes a loop", () => {
    const head = add();
    flagsNext(ram.view.getUint16(front.desc + head * 16 + 14, true), VIRTQ_DESC_F_NEXT, head);
  });
  test("names a descriptor beyond the table", () => flagsNext(add(), VIRTQ_DESC_F_NEXT, SIZE));
  test("names a head beyond the table", () => front.offer(SIZE));
  test("has more available than there are", () => {
    for (let i = 0; i <= SIZE; i++) front.offer(0);
  });
  test("turns its index back", () => {
    front.offer(add());
    ring.peek(chain);
    ring.take(chain);
    ram.view.setUint16(front.avail + 2, 0, true);
    expect(ring.peek(chain)).toBe(BROKEN);
  });
  test("offers what is in flight", () => {
    const head = add();
    expect(ring.peek(chain)).toBe(FOUND);
    ring.take(chain);
    front.offer(head);
  });
  test("chains an indirect table to more", () => {
    const head = front.add([{ at: 0, bytes: 8, write: false }], true);
    flagsNext(head, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_NEXT, 0);
  });
});
