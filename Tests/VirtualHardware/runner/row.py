"""One row of hardware-test: a machine, an interface, who owns the tables, and the boots that make up its cases."""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import commands
import expected
import machines

# The runner's own exit codes: see `run --help`.
TIMED_OUT, MACHINE_FAILED = 124, 125
# Seconds without a line of output after which a machine hangs: the longest case takes 6 s on a quiet host.
SILENCE = 120
# Where `make bench` has its guest rows from: machine, interface and translation, to what measures there and its options.
MEASURED = {
    ("vtd-scalable", "iommufd", "kernel"): ("measure", ["--memory", "3072", "--hugepages", "600"]),
    ("smmuv3-nested", "iommufd", "process"): ("measure-owned", ["--hugepages", "16"]),
}
# Where interrupt remapping is switched off.
WITHOUT_REMAPPING = "vtd-legacy"


class Row:
    """Boots the machine for the suites, for the counts (traced), and for what needs another machine."""

    def __init__(self, root: Path, machine: str, interface: str, translation: str = "kernel", expected: bool = True,
                 update: bool = False):
        self.root, self.machine, self.interface, self.translation = root, machine, interface, translation
        self.expected, self.update = expected, update
        self.cases: list[dict] = []
        self.counts: dict[str, dict] = {}
        self.seeds: dict[str, int] = {}
        self.boots: dict[str, int] = {}
        self.boot_seconds: dict[str, float] = {}
        self.stopped: list[str] = []
        self.measured: list[dict] = []
        self.seconds = 0.0
        self.output: list[str] = []

    def run(self) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="swift-iommu-row-") as folder:
            spare = [word for device in machines.SPARE_EDUS for word in ("--device", device)]
            self.boot("suites", ["--hugepages", "16", *spare], ["sh", "/row", self.machine, self.interface], 400)
            self.trace(Path(folder))
            self.without_remapping()
            self.outputs()
            self.measure()
        self.seconds = time.monotonic() - started

    @property
    def title(self) -> str:
        """What the row is called in output."""
        return f"{self.machine}/{self.interface}" + ("" if self.translation == "kernel" else f"/{self.translation}")

    def boot(self, name: str, options: list[str], command: list[str], timeout: int) -> list[str]:
        """Runs a command in the machine; its cases are added. The boot itself is a case too.

        A machine that stopped or hung gets a second try; what hangs twice is a failure. How many it took is in the document."""
        began = time.monotonic()
        for attempt in (1, 2):
            lines, status, console = self.once(options, command, timeout)
            self.boots[name] = attempt
            if "ROW DONE" in lines or status not in (MACHINE_FAILED, TIMED_OUT):
                break
            self.stopped.append(f"{name}, boot {attempt}: exit status {status} after {' | '.join(lines[-2:])}; "
                                f"console: {' | '.join(console[-4:])}")
        self.boot_seconds[name] = round(time.monotonic() - began, 1)
        self.parse(lines)
        finished = "ROW DONE" in lines
        self.add(f"boot/{name}", "pass" if finished else "fail",
                 None if finished else f"exit status {status}: {' | '.join(lines[-3:])}")
        self.output += lines + ([] if finished else console[-20:])
        return lines

    def once(self, options: list[str], command: list[str], timeout: int) -> tuple[list[str], int, list[str]]:
        here = self.root / "Tests/VirtualHardware"
        with tempfile.NamedTemporaryFile(prefix="swift-iommu-log-") as log:
            done = subprocess.run(
                [here / "run", "--quiet", "--machine", self.machine, "--translation", self.translation,
                 "--built", self.root, "--file", here / "guest/row", "--file", self.root / "udev",
                 "--file", self.root / "Tests/udev/apply", "--log", log.name, "--timeout", str(timeout),
                 "--silence", str(SILENCE), *options, "--", *command],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", stdin=subprocess.DEVNULL)
            return done.stdout.splitlines(), done.returncode, Path(log.name).read_text(errors="replace").splitlines()

    def parse(self, lines: list[str]) -> None:
        """`RESULT {json}` and `SEED case number` of the conformance program, `CASE name verdict [reason]` of the guest's script."""
        for line in lines:
            if line.startswith("RESULT "):
                for case in json.loads(line[7:])["cases"]:
                    self.add(case["name"], case["verdict"], case.get("reason"), case.get("ms"))
            elif line.startswith("CASE "):
                _, name, verdict, *reason = line.split(" ", 3)
                self.add(name, verdict, reason[0] if reason else None)
            elif line.startswith("SEED "):
                _, name, seed = line.split()
                self.seeds[name] = int(seed)

    def add(self, name: str, verdict: str, reason: str | None = None, milliseconds: int | None = None) -> None:
        """A case that one boot skips may run in another: then that boot's verdict counts."""
        skipped = {"name": name, "verdict": "skip"}
        self.cases = [case for case in self.cases if not skipped.items() <= case.items()]
        self.cases.append({"name": name, "verdict": verdict, "reason": reason or None, "ms": milliseconds})

    def count(self, verdict: str) -> int:
        """How many cases have a verdict."""
        return sum(case["verdict"] == verdict for case in self.cases)

    def trace(self, folder: Path) -> None:
        """Counts the IOMMU's commands from QEMU's trace of a boot of its own."""
        patterns = commands.patterns(self.machine)
        traces = {name: folder / name for name in patterns}
        options = [word for name, pattern in patterns.items() for word in ("--trace", f"{pattern}={traces[name]}")]
        lines = self.boot("counts", options, ["sh", "/row", self.machine, self.interface, "counts"], 300)
        phases = {int(words[2]): words[1] for words in map(str.split, lines) if words[:1] == ["PHASE"]}
        sent = {words[1]: (int(words[2]), int(words[3])) for words in map(str.split, lines) if words[:1] == ["SENT"]}
        expected = {words[1]: commands.expectation(words[2:])
                    for words in map(str.split, lines) if words[:1] == ["EXPECT"]}
        self.counts = commands.count(traces, phases, sent)
        for name, verdict, reason in commands.verdicts(
                self.machine, self.interface, self.translation, self.counts, expected):
            self.add(name, verdict, reason)

    def without_remapping(self) -> None:
        """A machine that cannot isolate interrupts must say so, with the remedy."""
        name = "no-interrupt-remapping"
        if machines.MACHINES[self.machine].intel is None:
            self.add(f"boot/{name}", "skip", "interrupt remapping can be switched off on VT-d only")
            return
        if self.machine != WITHOUT_REMAPPING:
            self.add(f"boot/{name}", "skip", f"tried on {WITHOUT_REMAPPING}: page tables have no part in it")
            return
        self.boot(name, ["--no-interrupt-remapping"], ["sh", "/row", self.machine, self.interface, name], 120)

    def measure(self) -> None:
        """Times for `make bench`, on two machines, over both interfaces in one boot. They gate nothing here."""
        what, options = MEASURED.get((self.machine, self.interface, self.translation), (None, []))
        if what is None:
            places = " and ".join(f"{machine} over {interface}" for machine, interface, _ in MEASURED)
            self.add("boot/measure", "skip", f"times are measured on {places}")
            return
        lines = self.boot("measure", options, ["sh", "/row", self.machine, self.interface, what], 300)
        self.measured = [json.loads(line.removeprefix("MEASURE ")) for line in lines if line.startswith("MEASURE ")]

    def outputs(self) -> None:
        """What iommuctl writes, against the files kept for the machine; the row's interface has no part in it, so that one
        row of a machine has it."""
        why = f"expected outputs are kept for {', '.join(expected.MACHINES)}"
        if self.machine in expected.MACHINES and not self.expected:
            why = "the machine's last row has it"
        if self.machine not in expected.MACHINES or not self.expected:
            self.add("boot/expected", "skip", why)
            for name in expected.names(self.machine):
                self.add(f"expected/{name}", "skip", why)
            return
        folder = self.root / "Tests/VirtualHardware/expected"
        lines = self.boot("expected", ["--file", str(folder / "pci.ids")], expected.command(self.machine), 120)
        # The frames are long, and the difference says more.
        self.output = self.output[:-len(lines)] if lines else self.output
        for name, verdict, reason, difference in expected.judge(
                self.machine, folder / self.machine, lines, self.update):
            self.add(f"expected/{name}", verdict, reason)
            self.output += [f"expected/{name}: {line}" for line in difference]

    def report(self) -> None:
        bad = [case for case in self.cases if case["verdict"] == "fail"]
        print(f"{self.title}: {self.count('pass')} passed, {len(bad)} failed, "
              f"{self.count('skip')} skipped in {self.seconds:.0f} s", flush=True)
        if self.seeds:
            print(f"  seeds: {', '.join(f'{name} {seed}' for name, seed in self.seeds.items())}", flush=True)
        for line in commands.table(self.counts, self.translation):
            print(f"  {line}", flush=True)
        if compared := commands.comparison(self.machine, self.counts):
            print(f"  {compared}", flush=True)
        for line in self.stopped:
            print(f"  stopped: {line}", flush=True)
        for case in bad:
            print(f"  FAIL {case['name']}: {case['reason']}", flush=True)
        if bad:
            for line in self.output[-60:]:
                print(f"  | {line}", flush=True)

    def document(self) -> dict:
        return {
            "machine": self.machine, "interface": self.interface, "translation": self.translation,
            "passed": self.count("pass"), "failed": self.count("fail"), "skipped": self.count("skip"),
            "seconds": round(self.seconds, 1), "boots": self.boots, "boot_seconds": self.boot_seconds,
            "stopped": self.stopped, "cases": self.cases, "seeds": self.seeds, "counts": self.counts,
            "measured": self.measured}
