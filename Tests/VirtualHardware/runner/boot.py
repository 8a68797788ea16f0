"""One boot: the initial file system, QEMU's arguments, and for nesting the IORT before."""

import argparse
import base64
import hashlib
import io
import os
import secrets
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import guest
import initramfs
import trace
from machines import DISK_BYTES, FIRMWARE, Machine
from parts import Failed, Parts


@dataclass
class Boot:
    options: argparse.Namespace
    machine: Machine
    parts: Parts
    here: Path
    scratch: Path
    """A folder for what lives as long as the guest."""

    @property
    def nested(self) -> bool:
        return self.machine.nested or self.options.translation == "process"

    def run(self, command: list[str], files: list[Path], log: Path, sink) -> int:
        """Runs the command in the machine that was asked for; its exit code."""
        tables = {"iort": self.iort(log)} if self.nested and not self.options.no_iommu else {}
        events = self.scratch / "trace"
        try:
            return self.once(command, files, tables, log, trace.arguments(self.options.trace, events), sink)
        finally:
            trace.split(self.options.trace, events)

    def once(self, command, files, tables: dict[str, Path], log: Path, tracing: list[str], sink) -> int:
        machine, options = self.machine, self.options
        token = secrets.token_hex(8)
        initrd = self.scratch / "initrd"
        initramfs.write(
            initrd, self.here / "guest", self.parts.busybox, files, self.parts.library_folders, tables,
            command=shlex.join(command) + "\n",
            settings=f"port={machine.port} token={token} hugepages={options.hugepages}\n"
                     f"export SHARED_GROUP='{' '.join(machine.shared_group)}' TRANSLATION={options.translation}\n")
        log.write_bytes(b"")
        return guest.run([
            *self.hardware(),
            # The console, then the command's output: see guest/init.
            "-chardev", f"file,id=console,append=on,path={log}", "-serial", "chardev:console",
            "-serial", "stdio",
            "-kernel", str(self.parts.kernel / "image"), "-initrd", str(initrd),
            "-append", " ".join(filter(None, [
                # Thousands of faults must not push the first ones out of the kernel's log.
                f"console={machine.console} rdinit=/bin/init panic=-1 quiet log_buf_len=4M",
                machine.timers, machine.kernel_arguments, "acpi=force" if self.nested else "", options.append])),
            *tracing, *options.qemu,
        ], log, token, guest.Limits(options.timeout, options.silence or options.timeout), sink)

    def hardware(self) -> list[str]:
        options = self.options
        disk = options.disk or self.scratch / "disk"
        if not options.disk:
            with open(disk, "wb") as file:
                file.truncate(DISK_BYTES)
        return [
            # One thread emulates all processors, in turns. With a thread each QEMU 10.0 stops a machine on a host that has
            # more to run than processors: an assertion in iotlb_to_section, or a processor that gets no interrupt any more.
            self.machine.emulator, "-accel", "tcg,thread=single", "-nodefaults", "-display", "none", "-no-reboot",
            *self.machine.board(not options.no_iommu, not options.no_interrupt_remapping, self.nested),
            "-smp", str(options.cpus), "-m", str(options.memory),
            *self.machine.devices(str(disk)),
            *(word for device in options.device for word in ("-device", device)),
        ]

    def iort(self, log: Path) -> Path:
        """The machine's ACPI table IORT, changed so that Linux allows nesting; see iort-canwbs.py.

        A first boot of the same hardware reads it. It is kept, under a name that tells all that it depends on.
        """
        tool = self.here / "iort-canwbs.py"
        cached = self.parts.cache / f"iort-{self.iort_key(tool)}.aml"
        if not cached.exists():
            if not self.options.quiet:
                print(f"run: reading the ACPI table IORT of {self.options.machine}", file=sys.stderr, flush=True)
            original, changed = self.scratch / "IORT", self.scratch / "changed"
            original.write_bytes(self.read_iort(log))
            if subprocess.run([sys.executable, tool, original, changed]).returncode != 0:
                raise Failed("the machine has no IORT that could be changed")
            unfinished = cached.with_name(f".{cached.name}.{self.scratch.name}")
            unfinished.write_bytes(changed.read_bytes())
            os.replace(unfinished, cached)
        return cached

    def iort_key(self, tool: Path) -> str:
        """QEMU makes the table, out of its arguments; firmware hands it on, and the tool changes it."""
        options = self.options
        disk = str(options.disk or self.scratch / "disk").replace(",", ",,")
        hardware = [word.replace(disk, "") for word in [*self.hardware(), *options.qemu]]
        firmware = hashlib.sha256(Path(FIRMWARE).read_bytes()).hexdigest()
        return hashlib.sha256(repr([self.parts.qemu, firmware, hardware, tool.read_text()]).encode()).hexdigest()[:12]

    def read_iort(self, log: Path) -> bytes:
        """The table as the machine has it."""
        output = io.BytesIO()
        if self.once(["base64", "/sys/firmware/acpi/tables/IORT"], [], {}, log, [], output) != 0:
            raise Failed("the machine has no ACPI table IORT")
        return base64.b64decode(output.getvalue())
