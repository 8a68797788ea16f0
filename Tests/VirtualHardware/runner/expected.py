"""What iommuctl writes in a guest, against the files in Tests/VirtualHardware/expected/MACHINE.

Exact, byte for byte: stdout as text and as JSON, and the exit status; stderr is empty unless a step says
what it holds. Nothing is
normalised, since two boots of a machine write the same. What would differ is pinned instead: the
names of devices come from expected/pci.ids, the boot is one of its own in which nothing else ran,
and nodes are numbered in the order in which devices are bound. Another kernel or QEMU may change
an output rightly (usable addresses, groups): read the difference, then --update-expected.
"""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import machines

MACHINES = ("vtd-scalable", "smmuv3", "smmuv3-nested")


@dataclass(frozen=True)
class Step:
    """A run of iommuctl, as text and as JSON; one that changes the machine runs once, as text."""

    name: str
    arguments: str
    status: int = 0
    once: bool = False
    #: What stderr holds when the form is text, as a regular expression.
    message: str = ""

    def forms(self) -> list[tuple[str, str]]:
        """File and arguments."""
        if self.once:
            return [(f"{self.name}.txt", self.arguments)]
        return [(f"{self.name}.txt", self.arguments), (f"{self.name}.json", f"{self.arguments} --json")]


def steps(machine: str) -> list[Step]:
    first, _, held = machines.MACHINES[machine].shared_group
    return [
        # As booted: no device is bound to VFIO, and the host holds one of the shared group.
        Step("list", "list", message=r"\d+ devices are blocked; `iommuctl doctor ADDRESS` says why"),
        Step("groups", "groups", message=r"1 group is not viable: a driver of the host's has the device in HELD BY; "
             r"`sudo iommuctl bind ADDRESS` gives all of a group to vfio-pci"),
        Step("doctor-machine", "doctor"),
        Step("show-unbound", "show 00:02.0"), Step("doctor-unbound", "doctor 00:02.0", 3),
        Step("show-shared", f"show {first}"), Step("doctor-shared", f"doctor {first}", 3),
        Step("doctor-culprit", f"doctor {held}", 3),
        Step("bind", "bind 00:02.0", once=True),
        Step("show", "show 00:02.0"), Step("show-type1", "show 00:02.0 --interface type1"),
        Step("doctor", "doctor 00:02.0"),
    ]


def command(machine: str) -> list[str]:
    return ["outputs", *(arguments for step in steps(machine) for _, arguments in step.forms())]


def names(machine: str) -> list[str]:
    return [name for step in steps(machine) for name, _ in step.forms()]


@dataclass
class Output:
    """A frame of the guest's script `outputs`."""

    stdout: str = ""
    messages: str = ""
    status: int | None = None


def read(lines: list[str]) -> list[Output]:
    """The frames in their order. What stands between frames is not theirs."""
    found: list[Output] = []
    current = Output()
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "BEGIN":
            current = Output()
            found.append(current)
        elif word == "END":
            current.status = int(rest)
        elif line[:1] == "|":
            current.stdout += line[1:] + "\n"
        elif line[:1] == "!":
            current.messages += line[1:] + "\n"
    return found


def judge(machine: str, folder: Path, lines: list[str], update: bool) -> list[tuple[str, str, str | None, list[str]]]:
    """(file, verdict, reason, difference) of every output; with `update` the files become what was written."""
    outputs, results = read(lines), []
    for step in steps(machine):
        for name, _ in step.forms():
            output = outputs.pop(0) if outputs else Output()
            reason, difference = refuse(step, output, name), output.messages.splitlines()
            if reason is None:
                if update:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_text(output.stdout)
                reason, difference = compare(folder / name, output.stdout)
            results.append((name, "fail" if reason else "pass", reason, difference))
    return results


def refuse(step: Step, output: Output, name: str) -> str | None:
    """What is wrong with an output whatever the file holds."""
    if output.status is None:
        return "the guest did not come to it"
    if output.status != step.status:
        return f"exit status {output.status} instead of {step.status}"
    messages, wanted = output.messages.removesuffix("\n"), step.message if name.endswith(".txt") else ""
    if re.fullmatch(wanted, messages):
        return None
    return f"a message: {messages.splitlines()[0]}" if messages else "no message"


def compare(file: Path, text: str) -> tuple[str | None, list[str]]:
    """The reason of a failure, and the difference."""
    if file.suffix == ".json":
        try:
            json.loads(text)
        except ValueError as error:
            return f"no JSON: {error}", text.splitlines()
    if not file.exists():
        return f"there is no {file.name} yet; --update-expected writes it", []
    kept = file.read_text()
    if kept == text:
        return None, []
    difference = list(difflib.unified_diff(kept.splitlines(), text.splitlines(), "expected", "written", "", "", 1, ""))
    return f"it differs from {file.parent.name}/{file.name}: {len(difference)} lines of difference", difference
