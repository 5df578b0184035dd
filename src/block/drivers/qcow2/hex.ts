/** Numbers as QSD's messages have them, C's "%#lx": zero has no prefix. Pure. Thread: any. */
export function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}
