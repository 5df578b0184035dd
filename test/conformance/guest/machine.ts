/**
 * A virtual machine whose disks are vhost-user-blk exports, and a shell in it over the serial
 * line. QEMU emulates the processor: tests must run where KVM does not.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { requireClient, run } from "../../support/clients.ts";
import { sleep } from "../../support/process.ts";
import { Qmp } from "../../support/qmp.ts";
import { GUEST_READY, type Tool, writeInitramfs } from "./initramfs.ts";
import { guestKernel } from "./kernel.ts";
import { machineState } from "./machine-state.ts";

const MEMORY_MIB = 384;
const BOOTED_WITHIN_MS = 180_000;
const DONE_WITHIN_MS = 180_000;
const POLL_MS = 20;
const CONNECT_ATTEMPTS = 100;
const SHOWN_CHARACTERS = 3000;

export interface GuestDisk {
  /** The export's socket. */
  readonly socket: string;
  readonly queues: number;
  /** More properties of the device, such as "packed=on". */
  readonly properties?: string;
}

export interface MachineOptions {
  readonly tools: readonly Tool[];
  /** vda, vdb, ... */
  readonly disks: readonly GuestDisk[];
  /** The monitor of the process that exports them, for what a failing test tells. */
  readonly backEnd: () => Qmp;
}

/** A shell command under way. */
interface Command {
  readonly text: string;
  /** Where its output begins. */
  readonly from: number;
  /** What the shell prints at its end, with the exit code. */
  readonly end: RegExp;
}

/** What a machine boots from, and tells of it. */
interface BootFiles {
  readonly kernel: string;
  readonly initramfs: string;
  readonly biosLog: string;
}

/** Makes an initramfs with these tools in `directory`. Small ones boot faster. */
async function prepareBoot(directory: string, tools: readonly Tool[]): Promise<BootFiles> {
  const kernel = await guestKernel();
  const initramfs = join(directory, "initramfs.cpio");
  await writeInitramfs(initramfs, kernel.modules, tools);
  return { kernel: kernel.image, initramfs, biosLog: join(directory, "bios.log") };
}

/** The chardev option that makes QEMU connect again after its peer went away. */
async function reconnectOption(): Promise<string> {
  const said = await run("qemu-system-x86_64", ["--version"]);
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(said) ?? [];
  const inMilliseconds = Number(major) * 100 + Number(minor) >= 902;
  return inMilliseconds ? "reconnect-ms=200" : "reconnect=1";
}

function machineArguments(boot: BootFiles, monitor: string): string[] {
  const clock = "tsc=unstable no_timer_check";
  // Memory that is plugged in serves the page cache at once, and can be taken away again.
  const memoryPlug = "memhp_default_state=online_movable";
  // All that it says until it has booted, from its unpacking on, shows where one got stuck.
  const output = "console=ttyS0 earlyprintk=ttyS0 loglevel=7";
  const kernelLine = `${output} panic=-1 mitigations=off ${clock} ${memoryPlug}`;
  const memory = `memory-backend-memfd,id=ram,size=${MEMORY_MIB}M,share=on`;
  return [
    ...["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", `${MEMORY_MIB},slots=2,maxmem=1G`],
    ...["-machine", "q35,memory-backend=ram,hpet=off", "-object", memory],
    ...["-nodefaults", "-display", "none", "-nic", "none", "-serial", "stdio"],
    ...["-chardev", `file,id=bios,path=${boot.biosLog}`],
    ...["-device", "isa-debugcon,iobase=0x402,chardev=bios"],
    ...["-kernel", boot.kernel, "-initrd", boot.initramfs, "-append", kernelLine],
    ...["-qmp", `unix:${monitor},server=on,wait=off`],
  ];
}

/** The properties of the device of disk `index`: on the command line, and when plugged again. */
function deviceOf(disk: GuestDisk, index: number): string {
  const device = `vhost-user-blk-pci,id=disk${index},bus=port${index},chardev=socket${index}`;
  const more = disk.properties === undefined ? "" : `,${disk.properties}`;
  return `${device},num-queues=${disk.queues}${more}`;
}

export class Machine implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #disks: readonly GuestDisk[];
  readonly #biosLog: string;
  readonly #backEnd: () => Qmp;
  #qmp: Qmp | undefined;
  #serial = "";
  #error = "";
  #ended = false;
  #booted = 0;
  #commandCount = 0;
  #command: Command | undefined;

  private constructor(child: ChildProcess, biosLog: string, options: MachineOptions) {
    this.#child = child;
    this.#biosLog = biosLog;
    this.#disks = options.disks;
    this.#backEnd = options.backEnd;
    child.stdout?.setEncoding("latin1").on("data", (text: string) => {
      this.#serial += text.replaceAll("\r", "");
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#error += text;
    });
    child.on("close", () => {
      this.#ended = true;
    });
  }

  /** Boots a machine. Its files are put into `directory`. */
  static async boot(directory: string, options: MachineOptions): Promise<Machine> {
    const monitor = join(directory, "machine.sock");
    const boot = await prepareBoot(directory, options.tools);
    const args = machineArguments(boot, monitor);
    const reconnect = await reconnectOption();
    options.disks.forEach((disk, index) => {
      args.push("-chardev", `socket,id=socket${index},path=${disk.socket},${reconnect}`);
      args.push("-device", `pcie-root-port,id=port${index},slot=${index + 1},chassis=${index + 1}`);
      args.push("-device", deviceOf(disk, index));
    });
    const program = requireClient("qemu-system-x86_64");
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"] });
    const machine = new Machine(child, boot.biosLog, options);
    try {
      machine.#qmp = await machine.#connect(monitor);
      await machine.booted();
    } catch (error) {
      machine.powerOff();
      throw error;
    }
    return machine;
  }

  /** Tries until QEMU listens, which is not yet so when the socket's file is there. */
  async #connect(monitor: string): Promise<Qmp> {
    for (let attempt = 1; ; attempt++) {
      await this.#until(() => existsSync(monitor), BOOTED_WITHIN_MS, "its monitor");
      try {
        return await Qmp.connect(monitor);
      } catch (error) {
        if (attempt === CONNECT_ATTEMPTS) throw error;
        await sleep(POLL_MS);
      }
    }
  }

  get qmp(): Qmp {
    if (this.#qmp === undefined) throw new Error("the machine has no monitor");
    return this.#qmp;
  }

  /** What the command under way has printed so far. */
  get output(): string {
    return this.#serial.slice(this.#command?.from ?? this.#serial.length);
  }

  /** Whether the command begun last has not ended. */
  get busy(): boolean {
    return this.#command !== undefined && !this.#command.end.test(this.#serial);
  }

  /** Waits until the shell of a machine that was started or reset takes commands. */
  async booted(): Promise<void> {
    this.#command = undefined;
    await this.#until(
      () => this.#serial.indexOf(`${GUEST_READY}\n`, this.#booted) >= 0,
      BOOTED_WITHIN_MS,
      "the guest's shell",
    );
    this.#booted = this.#serial.length;
  }

  /** Gives the shell a command, a single line, and does not wait for its end. */
  begin(text: string): void {
    if (this.busy) throw new Error(`the guest still does '${this.#command?.text}'`);
    const count = ++this.#commandCount;
    const end = new RegExp(`END-${count}:(\\d+)\\n`);
    this.#command = { text, from: this.#serial.length, end };
    // The quotes keep an echo of the line from looking like its end.
    this.#child.stdin?.write(`{ ${text}; } </dev/null 2>&1; echo EN""D-${count}:$?\n`);
  }

  /** The command's output; throws with it unless the command succeeds in time. */
  async finish(timeoutMs = DONE_WITHIN_MS): Promise<string> {
    const command = this.#command;
    if (command === undefined) throw new Error("the guest has no command to finish");
    await this.#until(() => !this.busy, timeoutMs, `'${command.text}'`);
    const end = command.end.exec(this.#serial) as RegExpExecArray;
    const output = this.#serial.slice(command.from, end.index).trim();
    this.#command = undefined;
    if (end[1] === "0") return output;
    this.begin("dmesg | tail -20");
    const kernel = await this.finish().catch((error: Error) => error.message);
    const what = `'${command.text}' ended with ${end[1]} in the guest`;
    throw new Error(`${what}:\n${tail(output)}\n-- its kernel:\n${kernel}${this.#qemuSaid()}`);
  }

  async run(text: string, timeoutMs = DONE_WITHIN_MS): Promise<string> {
    this.begin(text);
    return await this.finish(timeoutMs);
  }

  /** Waits until the command under way has printed `text`, or has ended. */
  async printed(text: string): Promise<void> {
    const there = () => this.output.includes(text) || !this.busy;
    await this.#until(there, DONE_WITHIN_MS, `'${text}'`);
  }

  /** Waits until the shell condition holds in the guest. */
  async eventually(condition: string): Promise<void> {
    await this.run(`for n in $(seq 900); do ${condition} && break; sleep 0.1; done; ${condition}`);
  }

  async unplug(index: number): Promise<void> {
    await this.qmp.execute("device_del", { id: `disk${index}` });
    await this.qmp.event("DEVICE_DELETED", (data) => data.device === `disk${index}`);
  }

  async plug(index: number, queues = this.#disks[index]?.queues): Promise<void> {
    const disk = { ...(this.#disks[index] as GuestDisk), queues: queues ?? 1 };
    const [driver, ...properties] = deviceOf(disk, index).split(",");
    const pairs = properties.map((each) => {
      const [name, value] = each.split("=") as [string, string];
      return [name, value === "on" || (/^\d+$/.test(value) ? Number(value) : value)];
    });
    await this.qmp.execute("device_add", { driver, ...Object.fromEntries(pairs) });
  }

  /** The end without warning: what the guest had not stored is lost. */
  powerOff(): void {
    this.#qmp?.close();
    this.#child.kill("SIGKILL");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.powerOff();
    while (!this.#ended) await sleep(POLL_MS);
  }

  async #until(done: () => boolean, timeoutMs: number, what: string): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    while (!done()) {
      const why = this.#ended ? "QEMU ended" : `nothing after ${timeoutMs} ms`;
      if (this.#ended || Date.now() > deadline) {
        const said = `the serial line:\n${tail(this.#serial)}${this.#qemuSaid()}`;
        throw new Error(`waiting for ${what}: ${why}; ${said}\n${await this.#state()}`);
      }
      await sleep(POLL_MS);
    }
  }

  async #state(): Promise<string> {
    if (this.#ended || this.#qmp === undefined) return "";
    return await machineState({
      qmp: this.#qmp,
      biosLog: this.#biosLog,
      queueCounts: this.#disks.map(({ queues }) => queues),
      backEnd: this.#backEnd(),
    });
  }

  #qemuSaid(): string {
    return this.#error === "" ? "" : `\n-- QEMU:\n${tail(this.#error)}`;
  }
}

function tail(text: string): string {
  return text.slice(-SHOWN_CHARACTERS);
}
