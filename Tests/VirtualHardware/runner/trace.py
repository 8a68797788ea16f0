"""QEMU's trace events: which to record, and their distribution over files."""

import argparse
import fnmatch
import functools
import subprocess
from pathlib import Path

# What guest/mark writes to: Interrupt Line (offset 0x3c) of the host bridge, 00:00.0.
MARK_EVENT = "pci_cfg_write"


class Unknown(Exception):
    pass


class Request:
    """`PATTERN=FILE`, with a pattern as QEMU's -trace takes it."""

    def __init__(self, text: str):
        self.pattern, equals, file = text.partition("=")
        if not (self.pattern and equals and file):
            raise argparse.ArgumentTypeError(f"PATTERN=FILE is wanted, not {text}")
        self.file = Path(file)

    def check(self, emulator: str):
        if not any(self.matches(event) for event in events(emulator)):
            raise Unknown(f"--trace: QEMU has no event {self.pattern}")
        # Better now than after the run.
        self.file.write_text("")

    def matches(self, event: str) -> bool:
        return fnmatch.fnmatchcase(event, self.pattern)


@functools.cache
def events(emulator: str) -> list[str]:
    return subprocess.run([emulator, "-trace", "help"], capture_output=True, text=True).stdout.split()


def arguments(requests: list[Request], file: Path) -> list[str]:
    if not requests:
        return []
    patterns = dict.fromkeys([request.pattern for request in requests] + [MARK_EVENT])
    return ["-D", str(file)] + [word for pattern in patterns for word in ("-trace", pattern)]


def split(requests: list[Request], file: Path):
    """Gives each request its file: the events of its pattern, and every mark, in order."""
    if not requests:
        return
    outputs = [(request, open(request.file, "w")) for request in requests]
    wanted: dict[str, list] = {}
    if file.exists():
        with open(file, errors="replace") as lines:
            for line in lines:
                event = line.split(" ", 1)[0].rstrip("\n")
                if event not in wanted:
                    wanted[event] = [out for request, out in outputs if request.matches(event)]
                number = mark(line) if event == MARK_EVENT else None
                for out in wanted[event]:
                    out.write(line)
                if number is not None:
                    for _, out in outputs:
                        out.write(f"mark {number}\n")
    for _, out in outputs:
        out.close()


def mark(line: str) -> int | None:
    """The number, when the guest marked a phase: `pci_cfg_write mch 00:0.0 @0x3c <- 0x5`."""
    words = line.split()
    if len(words) == 6 and words[2] in ("00:0.0", "00:00.0") and words[3] == "@0x3c":
        return int(words[5], 16) & 0xFF
    return None
