"""Builds a Swift package for a guest's architecture.

Build folders stay in the package, `.build-guest-x86_64` and `.build-guest-arm64`, so that the
next build has only to do what changed.
"""

import os
import subprocess
import sys
from pathlib import Path

import elf
from parts import Failed, Parts

SDK_TRIPLE = "aarch64-unknown-linux-gnu"
STAMP = "resolved"

# The program and its linker only: a guest has no room for symbols, and nobody to read them. Without making them the
# compiler takes a quarter less time.
OPTIONS = ["--configuration", "release", "--static-swift-stdlib", "-Xlinker", "-s", "-Xswiftc", "-gnone"]


def build(package: Path, parts: Parts) -> list[Path]:
    """The package's programs."""
    scratch = build_folder(package, parts.architecture)
    if parts.architecture == "arm64":
        for_arm64(package, scratch, parts)
    else:
        swift(["swift", "build", *options(package, scratch)], parts.quiet)
    return programs(package, parts.architecture)


def build_folder(package: Path, architecture: str) -> Path:
    return package / f".build-guest-{architecture}"


def programs(package: Path, architecture: str) -> list[Path]:
    """What was built last."""
    folder = build_folder(package, architecture) / "release"
    found = [path for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
             if path.is_file() and os.access(path, os.X_OK) and is_program(path)]
    if not found:
        raise Failed(f"{package} has no program built for {architecture}")
    return found


def options(package: Path, scratch: Path) -> list[str]:
    return ["--package-path", str(package), "--scratch-path", str(scratch), *OPTIONS]


def for_arm64(package: Path, scratch: Path, parts: Parts):
    """By the SDK's own compiler, which runs in a file system of its own (see in-toolchain).

    It sees only the package, so dependencies are resolved by the machine's own Swift first, which
    knows this machine's git configuration and network.
    """
    if not resolved(package, scratch):
        swift(["swift", "package", "--package-path", package, "--scratch-path", scratch, "resolve"], parts.quiet)
        (scratch / STAMP).touch()
    sysroot = "/sdk/guest-arm64.artifactbundle/sysroot"
    swift([
        Path(__file__).with_name("in-toolchain"), parts.toolchain, package,
        f"PKG_CONFIG_PATH={sysroot}/usr/lib/aarch64-linux-gnu/pkgconfig:{sysroot}/usr/share/pkgconfig",
        "swift", "build", *options(package, scratch), "--swift-sdks-path", "/sdk", "--swift-sdk", SDK_TRIPLE,
        # Servers with an SMMUv3 have the atomic instructions of Armv8.1; without, each is a call that looks for them.
        "-Xcc", "-march=armv8.1-a",
        # Nothing can be fetched from in there, and it is a sandbox already.
        "--disable-automatic-resolution", "--disable-sandbox",
        "--manifest-cache", "local",
    ], parts.quiet)


def resolved(package: Path, scratch: Path) -> bool:
    """Whether the dependencies were resolved since the manifest changed last."""
    stamp = scratch / STAMP
    manifests = [package / "Package.swift", package / "Package.resolved"]
    return stamp.exists() and all(
        manifest.stat().st_mtime <= stamp.stat().st_mtime for manifest in manifests if manifest.exists())


def swift(command: list, quiet: bool):
    """Builds speak on stderr, to leave stdout to the guest; quiet ones only when they fail."""
    try:
        answer = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, text=True, errors="replace",
            stdout=subprocess.PIPE if quiet else sys.stderr, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise Failed(f"--build needs a Swift toolchain: there is no {error.filename}") from None
    if answer.returncode != 0:
        sys.stderr.write(answer.stdout or "")
        raise Failed("the build failed")


def is_program(path: Path) -> bool:
    try:
        return elf.ELF(path).is_program
    except elf.NotELF:
        return False
