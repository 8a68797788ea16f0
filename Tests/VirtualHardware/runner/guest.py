"""Boots QEMU, passes the command's output on, and finds out how it ended."""

import ctypes
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
SHUTDOWN_SECONDS = 20


class GuestFailed(Exception):
    """The machine, not the command, went wrong."""


class TimedOut(Exception):
    pass


class Stream:
    """The guest's output port: `\\x1e TOKEN \\n`, the command's bytes, `\\x1e TOKEN CODE \\n`.

    Firmware may have written to the port before the first marker.
    """

    def __init__(self, token: str, sink):
        self.marker = b"\x1e" + token.encode() + b" "
        self.sink = sink
        self.pending = b""
        self.started = False
        self.code: int | None = None

    def feed(self, data: bytes):
        self.pending += data
        if not self.started:
            before, marker, after = self.pending.partition(self.marker + b"\n")
            if not marker:
                return
            self.started = True
            self.pending = after
        at = self.pending.find(self.marker)
        if at < 0:
            # The tail may be the marker's beginning.
            at = max(0, len(self.pending) - len(self.marker) + 1)
        else:
            rest = self.pending[at + len(self.marker):]
            if rest.endswith(b"\n"):
                self.code = int(rest)
        self.write(self.pending[:at])
        self.pending = self.pending[at:]

    def finish(self):
        if self.started and self.code is None:
            self.write(self.pending)

    def write(self, data: bytes):
        if data:
            self.sink.write(data)
            self.sink.flush()


@dataclass
class Limits:
    """Seconds: for the boot and the command together, and for one wait for output."""

    total: float
    silence: float


def run(arguments: list[str], log: Path, token: str, limits: Limits, sink) -> int:
    """Runs QEMU with these arguments until the command has ended; its exit code.

    QEMU's own messages are appended to `log`, where the kernel's console goes as well.
    """
    stream = Stream(token, sink)
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            preexec_fn=die_with_parent)
    try:
        read_all(process, stream, limits)
        # The guest has closed the port; what is left to do is to power off.
        process.wait(SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        if stream.code is None:
            raise GuestFailed("QEMU closed its output but does not end") from None
    finally:
        process.kill()
        process.wait()
        stream.finish()
    if stream.code is None:
        raise GuestFailed(f"the guest stopped before the command had ended (QEMU: {process.returncode})")
    return stream.code


def read_all(process: subprocess.Popen, stream: Stream, limits: Limits):
    output = process.stdout.fileno()
    deadline = time.monotonic() + limits.total
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while stream.code is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not selector.select(min(remaining, limits.silence)):
                raise TimedOut(f"no output for {limits.silence:g} s; --silence sets the limit" if remaining > limits.silence
                               else f"not finished after {limits.total:g} s; --timeout sets the limit")
            data = os.read(output, 1 << 16)
            if not data:
                return
            stream.feed(data)


def die_with_parent():
    """A runner that is killed leaves no machine running."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def tail(log: Path, lines: int = 15) -> str:
    text = log.read_bytes().decode(errors="replace").replace("\r", "")
    return "\n".join(text.splitlines()[-lines:])

