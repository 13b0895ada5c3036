"""
Usage: scripts/vm [OPTION]... [-- COMMAND...]

Boots a kernel, runs COMMAND in it as root and exits with its status. Standard output and error are
passed on separately, as they come; standard input is empty. Without COMMAND: an interactive shell.

In the guest this project is the working directory, read-write, at the same absolute path as
outside. The root file system is a Debian trixie with dmsetup, LVM2, thin-provisioning-tools, fio,
e2fsprogs, xfsprogs, Python and pytest; changes to it are discarded afterwards. TERM is that of the
caller if standard output is a terminal, otherwise "dumb".

  --kernel stock      the Debian kernel, in QEMU (the default)
  --kernel debug      an x86 kernel with KASAN, lockdep, kmemleak, debug objects and fault
                      injection, in QEMU
  --kernel uml        User Mode Linux with the same except lockdep; one CPU, as fast as the host
                      These two refuse to run COMMAND with a sanitizer off, and check for leaks
                      after it, which takes five seconds
  --kernel native     User Mode Linux without any of that, to measure
                      All but stock are built on first use (make debug-kernel), and the module for
                      them each time
  --arch arm64        the stock kernel of another architecture, emulated; the same as ARCH=arm64 in
                      the environment
  --no-leak-check     do not check for leaks, and run with kmemleak off, which is faster
  --expect REPORT     invert the verdict: the run succeeds if the kernel reports REPORT; repeatable
  --cpus N            virtual CPUs (2; always 1 in User Mode Linux)
  --memory SIZE       memory (2G)
  --timeout SECONDS   time limit of the whole run (600)
  --disk SIZE         a scratch disk, empty and sparse; repeatable; $DISKS has their names
                      ("/dev/vda /dev/vdb"). A path instead of a size: the disk in that file,
                      which keeps what is written to it
  --bind DIR          a further folder, read-write, at the same absolute path; repeatable
  --env NAME=VALUE    a variable for COMMAND; repeatable
  --module rust       load dm-mod, dm-bufio, dm-persistent-data and rust/dm_rust.ko (the default;
                      build it for the stock kernel with 'make'; $DM_RUST_KO names another file)
  --module c          load the C targets instead
  --module none       load only the first three
                      With rust and none, dm-clone, dm-era and dm-snapshot are never loaded on
                      demand; to load one on purpose: modprobe --ignore-install dm-clone
  --udev              run systemd-udevd, for LVM2's suites; otherwise DM_DISABLE_UDEV=1 is set
  --interactive       connect COMMAND to the terminal

Exit status: that of COMMAND, unless
  124  the time limit was exceeded
  125  the kernel reported a bug, warning, hang or leak, or the guest died.
Then the console log is shown, from that report on or its end. The log stays in .vm/, in a folder
for each run, for three days.

A foreign suite, for example LVM2's own tests, built in the root that the guest is made from:
  export EXTRA_PACKAGES="libaio-dev libblkid-dev libudev-dev pkg-config" suite=~/src/lvm2
  scripts/in-root --bind $suite -- sh -c "cd $suite && ./configure && make"
  test="make -C $suite check_local T=snapshot-rename"
  scripts/vm --udev --memory 4G --timeout 7200 --disk 4G --bind $suite -- $test
"""

import argparse
import collections
import contextlib
import ctypes
import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

SCRIPTS = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PROJECT = os.path.dirname(SCRIPTS)
TIMED_OUT, KERNEL_FAILED = 124, 125
REPORT = re.compile(
    r"BUG:|WARNING:|\bOops\b|KASAN|KCSAN|KFENCE:|UBSAN:|Kernel panic|general protection fault"
    r"|kmemleak: [1-9]|INFO: task .* blocked|INFO: possible|INFO: trying to register|rcu: INFO"
    r"|detected stall|ODEBUG:"
    r"|[Uu]nable to handle (kernel|page)|refcount_t:|list_(add|del) corruption|dm-rust guest: "
)
Machine = collections.namedtuple("Machine", "program name cpu kernel")
MACHINES = {
    "amd64": Machine(
        "qemu-system-x86_64",
        "pc",
        "max,la57=off",
        "console=ttyS0,115200 no_timer_check tsc=reliable 8250.nr_uarts=1",
    ),
    "arm64": Machine("qemu-system-aarch64", "virt", "max,pauth-impdef=on", "console=ttyAMA0"),
}
UML = ("uml", "native")  # kernels that are processes of the host
KVM_TRIAL_SECONDS = 20
KEEP_SECONDS = 3 * 24 * 3600


def arguments():
    parser = argparse.ArgumentParser(
        add_help=False,
        allow_abbrev=False,
        usage="scripts/vm [OPTION]... [-- COMMAND...]; see --help",
    )
    parser.add_argument("--guest", help=argparse.SUPPRESS)
    parser.add_argument("--tree", help=argparse.SUPPRESS)
    parser.add_argument("--arch", choices=MACHINES, default="amd64")
    parser.add_argument("--kernel", choices=["stock", "debug", *UML], default="stock")
    parser.add_argument("--no-leak-check", action="store_true")
    parser.add_argument("--expect", action="append", default=[])
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--disk", action="append", default=[])
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--module", choices=["rust", "c", "none"], default="rust")
    parser.add_argument("--udev", action="store_true")
    parser.add_argument("--interactive", action="store_true")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    if not options.command:
        options.command, options.interactive = ["bash"], True
    if options.interactive and not sys.stdin.isatty():
        parser.error("an interactive command needs a terminal")
    options.ko = os.path.realpath(os.environ["DM_RUST_KO"])
    if options.module == "rust" and not os.path.exists(options.ko):
        parser.error(f"{options.ko} is missing: run 'make' first")
    return options


class Run:
    """One boot: a folder .vm/NAME shared with the guest, the process of the machine, and the
    verdict.
    """

    def __init__(self, options, accel):
        self.options, self.accel = options, accel
        self.dir = f"{PROJECT}/.vm/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}" + (
            "-" + accel if accel == "kvm" else ""
        )
        self.console = f"{self.dir}/console.log"
        self.machine = None
        self.shares = [PROJECT] + [os.path.realpath(path) for path in options.bind]
        if options.module == "rust" and not options.ko.startswith(PROJECT + "/"):
            self.shares.append(os.path.dirname(options.ko))
        # Their places in the guest; a debug kernel brings its modules.
        self.mounts = [(path, path) for path in self.shares]
        if options.tree:
            self.mounts.append((f"{options.tree}/modules", "/lib/modules"))

    def prepare(self):
        os.makedirs(self.dir)
        for old in os.scandir(os.path.dirname(self.dir)):
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(old.path, ignore_errors=True)
        shutil.copy(f"{SCRIPTS}/guest/init", self.dir)
        with open(f"{self.dir}/shares", "w") as file:
            for number, (path, target) in enumerate(self.mounts):
                print(f"share{number}", path, target, file=file)
        options = self.options
        with open(f"{self.dir}/config", "w") as file:
            for name, value in [
                ("project", PROJECT),
                ("kernel", options.kernel),
                ("uml", "1" if options.kernel in UML else ""),
                ("sanitizers", "1" if options.kernel in ("debug", "uml") else ""),
                ("module", options.module),
                ("ko", options.ko),
                ("example", os.environ["DM_RUST_EXAMPLE_KO"]),
                ("leaks", "" if options.no_leak_check else "1"),
                ("udev", "1" if options.udev else ""),
                ("interactive", "1" if options.interactive else ""),
            ]:
                print(f"{name}={shlex.quote(value)}", file=file)
            print(f"shares=({shlex.join(self.shares)})", file=file)
            print(f"command=({shlex.join(options.command)})", file=file)
            terminal = sys.stdout.isatty()
            size = shutil.get_terminal_size()
            print(
                "export TERM="
                + shlex.quote(os.environ.get("TERM", "linux") if terminal else "dumb"),
                file=file,
            )
            print(f"columns={size.columns} rows={size.lines}", file=file)
            for setting in options.env:
                print(f"export {shlex.quote(setting)}", file=file)

    def kmemleak(self):
        return ["kmemleak=off"] if self.options.no_leak_check else []

    def scratch_disks(self):
        for number, size in enumerate(self.options.disk):
            if "/" in size:
                yield os.path.realpath(size)
                continue
            path = f"{self.dir}/disk{number}"
            subprocess.run(["truncate", "--size", size, path], check=True)
            yield path

    def uml_command(self, stdout, stderr, console):
        options = self.options
        # Its memory is a sparse file in /dev/shm; writes to the image go to a copy-on-write file.
        command = [
            f"{options.tree}/vmlinux",
            f"mem={options.memory}",
            f"initrd={options.guest}/initrd-bare",
            f"run={self.dir}",
            f"uml_dir={self.dir}",
            "umid=uml",
            "ignore_loglevel",
            "con=null",
            "ssl=null",
            f"con0=null,fd:{console}",
            f"ssl1=null,fd:{stdout}",
            f"ssl2=null,fd:{stderr}",
            f"ubd0={self.dir}/root.cow,{options.guest}/root.img",
        ]
        if options.interactive:
            command.append("ssl0=fd:0,fd:1")
        command += self.kmemleak()
        return command + [
            f"ubd{number}={path}" for number, path in enumerate(self.scratch_disks(), 1)
        ]

    def qemu_command(self, stdout, stderr, console):
        options = self.options
        guest = options.guest
        kernel, initrd = (options.tree, "initrd-bare") if options.tree else (guest, "initrd")
        machine = MACHINES[options.arch]
        command = [
            machine.program,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-machine",
            machine.name,
            "-accel",
            "kvm" if self.accel == "kvm" else "tcg,thread=multi",
            "-cpu",
            "host" if self.accel == "kvm" else machine.cpu,
            "-smp",
            str(options.cpus),
            "-m",
            options.memory,
            "-kernel",
            f"{kernel}/vmlinux",
            "-initrd",
            f"{guest}/{initrd}",
            "-append",
            " ".join(
                [
                    "ignore_loglevel panic=-1 oops=panic mitigations=off random.trust_cpu=on",
                    machine.kernel,
                ]
                + self.kmemleak()
            ),
            "-chardev",
            f"file,id=console,path=/dev/fd/{console}",
            "-serial",
            "chardev:console",
            "-device",
            "virtio-serial-pci",
            "-chardev",
            f"file,id=stdout,path=/dev/fd/{stdout}",
            "-device",
            "virtserialport,chardev=stdout,name=stdout,nr=2",
            "-chardev",
            f"file,id=stderr,path=/dev/fd/{stderr}",
            "-device",
            "virtserialport,chardev=stderr,name=stderr,nr=3",
        ]
        if options.interactive:
            command += [
                "-chardev",
                "stdio,id=terminal,signal=off",
                "-device",
                "virtconsole,chardev=terminal,nr=1",
            ]
        for number, path in enumerate(self.scratch_disks()):
            command += self.disk(f"scratch{number}", path, "cache=unsafe,discard=unmap")
        # The image is never written, but User Mode Linux holds a lock on it, which QEMU refuses.
        command += self.disk("root", f"{guest}/root.img", "snapshot=on,file.locking=off")
        for tag, path in [("run", self.dir)] + [
            (f"share{n}", path) for n, (path, _) in enumerate(self.mounts)
        ]:
            command += [
                "-fsdev",
                f"local,id={tag},path={path.replace(',', ',,')},"
                "security_model=passthrough,multidevs=remap",
                "-device",
                f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
            ]
        return command

    def disk(self, serial, path, how):
        return [
            "-drive",
            f"if=none,id={serial},format=raw,file={path.replace(',', ',,')},{how}",
            "-device",
            f"virtio-blk-pci,drive={serial},serial={serial}",
        ]

    def start(self, quiet=False):
        """Starts the machine, which dies with this process; threads pass on its outputs."""
        self.prepare()
        pipes = [os.pipe() for _ in range(3)]
        writers = [writer for _, writer in pipes]
        libc = ctypes.CDLL(None)
        uml = self.options.kernel in UML
        console = os.open(self.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.machine = subprocess.Popen(
            (self.uml_command if uml else self.qemu_command)(*writers),
            pass_fds=writers,
            stdin=None if self.options.interactive else subprocess.DEVNULL,
            stdout=None if self.options.interactive else subprocess.DEVNULL,
            stderr=console if uml else open(f"{self.dir}/qemu.log", "w"),
            start_new_session=not self.options.interactive,
            preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),
        )
        self.pumps = []
        for (reader, writer), target in zip(
            pipes, (None if quiet else 1, None if quiet else 2, console)
        ):
            os.close(writer)
            pump = threading.Thread(target=self.pump, args=(reader, target), daemon=True)
            pump.start()
            self.pumps.append(pump)

    @staticmethod
    def pump(reader, target):
        while data := os.read(reader, 65536):
            while data and target is not None:
                data = data[os.write(target, data) :]

    def wait(self, seconds):
        try:
            self.machine.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return TIMED_OUT, f"the time limit of {seconds:g} s was exceeded"
        for pump in self.pumps:
            pump.join(10)
        reports = self.reports()
        if reports:
            return KERNEL_FAILED, f"the kernel reported: {reports[0]}"
        try:
            with open(f"{self.dir}/status") as file:
                return int(file.read()), None
        except (OSError, ValueError):
            return KERNEL_FAILED, "the guest died" + self.map_count()

    def map_count(self):
        """Each page of a process in User Mode Linux may be a mapping of the host."""
        with open("/proc/sys/vm/max_map_count") as file:
            count = int(file.read())
        if self.options.kernel not in UML or count >= 1 << 20:
            return ""
        return (
            f"; if by a large process: sysctl vm.max_map_count=4000000 on this machine (is {count})"
        )

    def reports(self):
        with open(self.console, errors="replace") as file:
            return [line.strip() for line in file if REPORT.search(line)]

    def kill(self):
        if self.machine and self.machine.poll() is None:
            self.machine.kill()
            self.machine.wait()
        # The processes of a User Mode Linux.
        if self.machine and not self.options.interactive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.machine.pid, signal.SIGKILL)

    def clean(self):
        for name in ["root.cow"] + [f"disk{number}" for number in range(len(self.options.disk))]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.dir}/{name}")

    def show(self, reason):
        print(
            f"scripts/vm: {reason}; console log: {os.path.relpath(self.console)}", file=sys.stderr
        )
        for name in ("qemu.log", "console.log"):
            if not os.path.exists(f"{self.dir}/{name}"):
                continue
            with open(f"{self.dir}/{name}", errors="replace") as file:
                lines = file.readlines()
            first = next((n for n, line in enumerate(lines) if REPORT.search(line)), len(lines))
            start = max(0, min(first - 5, len(lines) - 40))
            sys.stderr.writelines(f"  | {line.rstrip()}\n" for line in lines[start : start + 60])
            if start + 60 < len(lines):
                print(f"  | ... {len(lines) - start - 60} more lines", file=sys.stderr)


def accelerator(options):
    """KVM only if a trial guest ran under it, once per boot of this machine; the cache keeps the
    result.
    """
    if options.arch != "amd64" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with open("/proc/sys/kernel/random/boot_id") as file:
        note = f"{os.environ['XDG_CACHE_HOME']}/dm-rust/kvm-{file.read().strip()}"
    if not os.path.exists(note):
        trial = argparse.Namespace(
            **{
                **vars(options),
                "command": ["true"],
                "module": "none",
                "disk": [],
                "interactive": False,
                "kernel": "stock",
                "tree": None,
                "bind": [],
            }
        )
        run = Run(trial, "kvm")
        try:
            run.start(quiet=True)
            works = run.wait(KVM_TRIAL_SECONDS) == (0, None)
        finally:
            run.kill()
        shutil.rmtree(run.dir)
        with open(f"{note}.{os.getpid()}", "w") as file:
            file.write("kvm" if works else "tcg")
        for old in glob.glob(f"{os.path.dirname(note)}/kvm-????????-*-????????????"):
            os.unlink(old)
        os.rename(file.name, note)
        print(
            f"scripts/vm: KVM {'works' if works else 'does not work here, so emulation is used'}",
            file=sys.stderr,
        )
    with open(note) as file:
        return file.read()


def main():
    options = arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    run = Run(options, "uml" if options.kernel in UML else accelerator(options))
    try:
        run.start()
        status, reason = run.wait(options.timeout)
    finally:
        run.kill()
        run.clean()
    if options.expect:
        missing = [
            text for text in options.expect if not any(text in report for report in run.reports())
        ]
        if status == KERNEL_FAILED and not missing:
            print(f"scripts/vm: as expected, {reason}", file=sys.stderr)
            sys.exit(0)
        status, reason = (
            status or KERNEL_FAILED,
            reason or f"the kernel did not report: {', '.join(missing)}",
        )
    if reason:
        run.show(reason)
    sys.exit(status)


main()
