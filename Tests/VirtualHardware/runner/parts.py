"""What `setup` provides: where the kernel, the guest's shell and the Swift toolchain are."""

import subprocess
from functools import cached_property
from pathlib import Path

import elf


class Failed(Exception):
    """A step before the boot went wrong; its own messages have been printed."""


class Parts:
    """Asks `setup` for each part when it is needed first; `setup` makes what is missing."""

    def __init__(self, setup: Path, architecture: str, quiet: bool):
        self.setup = setup
        self.architecture = architecture
        self.quiet = quiet

    @cached_property
    def basic(self) -> dict[str, str]:
        return self.ask("qemu", "busybox", f"kernel-{self.architecture}")

    @property
    def kernel(self) -> Path:
        return Path(self.basic[f"kernel-{self.architecture}"])

    @property
    def qemu(self) -> str:
        return self.basic["qemu"]

    @property
    def cache(self) -> Path:
        return self.kernel.parent

    @property
    def busybox(self) -> Path:
        return Path(self.basic["busybox"]) / f"busybox-{self.architecture}"

    @cached_property
    def toolchain(self) -> Path:
        """The arm64 Swift SDK and the compiler that belongs to it."""
        return Path(self.ask("sdk-arm64")["sdk-arm64"])

    @property
    def library_folders(self) -> list[Path]:
        if self.architecture == "x86_64":
            return elf.own_folders()
        root = self.toolchain / "sdk/guest-arm64.artifactbundle/sysroot"
        return [root / "usr/lib/aarch64-linux-gnu", root / "usr/lib"]

    def ask(self, *names: str) -> dict[str, str]:
        quiet = ["--quiet"] if self.quiet else []
        answer = subprocess.run(
            [self.setup, *quiet, *names], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        if answer.returncode != 0:
            raise Failed(f"`setup {' '.join(names)}` failed")
        return dict(line.split("=", 1) for line in answer.stdout.splitlines())
