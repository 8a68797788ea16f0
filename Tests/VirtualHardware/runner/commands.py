"""Counts the commands that an emulated IOMMU executed, by phase, from QEMU's trace.

Where a process owns the page tables it says how many commands it sent; the others are the kernel's.
"""

from pathlib import Path

import machines

# The cases of `counts` that this version has; what was unmapped is in the name.
CASES = ["unmap_1", "unmap_64", "unmap_512", "unmap_1024", "unmap_list_64", "map_64", "close_64", "lazy_10000"]
# Those that only tables of the process have.
NESTED = ["close_100000", "close_shared", "register_64", "blocks_63", "blocks_64"]
# The same 10,000 maps under the other protections, on one machine.
COMPARED = {"vtd-caching": ["lazy_10000_strict", "lazy_10000_per_cpu", "lazy_10000_single"]}

VTD_WORDS = "vtd_inv_desc invalidate desc type".split()
VTD_KINDS = {"iotlb": "tlbi", "p-iotlb": "tlbi", "context-cache": "cfgi", "pasid-cache": "cfgi", "wait": "sync"}


def pattern(machine: str) -> str | None:
    """QEMU's trace events of commands; virtio-iommu has none, an unmap request is the invalidation."""
    if machine == "virtio":
        return None
    return "vtd_inv_desc" if machines.MACHINES[machine].intel is not None else "smmuv3_cmdq_opcode"


def kind(line: str) -> str | None:
    """`tlbi`, `cfgi` or `sync`, for the first line that QEMU traces of a command."""
    event = line.split(" ", 1)[0]
    if event == "smmuv3_cmdq_opcode":
        if "CMD_SYNC" in line:
            return "sync"
        if "TLBI" in line:
            return "tlbi"
        return "cfgi" if "CFGI" in line else None
    # Every descriptor has this event, with its type as the word after these; not every type has one of its own.
    words = line.split()
    return VTD_KINDS.get(words[4]) if words[:4] == VTD_WORDS and len(words) > 4 else None


def count(machine: str, trace: Path | None, phases: dict[int, str], sent: dict[str, tuple[int, int]]) -> dict[str, dict]:
    """`{case: {process: {…}, kernel: {tlbi, cfgi, sync}}}`; null where the machine has no trace.

    A phase begins at the mark with its number and ends at the next mark, whichever that is. `sent` are the invalidations and
    syncs that the process says are its own."""
    nothing = {"tlbi": 0, "cfgi": 0, "sync": 0}
    if trace is None:
        return {name: {"process": None, "kernel": None} for name in phases.values()}
    counts = {name: {"process": dict(nothing), "kernel": dict(nothing)} for name in phases.values()}
    current, newly_present = None, False
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    for line in lines:
        if line.startswith("mark "):
            current, newly_present = phases.get(int(line.split()[1])), False
        elif current is not None and (found := kind(line)):
            kernel = counts[current]["kernel"]
            if found == "cfgi":
                newly_present = is_newly_present(line)
            elif found == "tlbi" and newly_present:
                # Part of the same act, attaching, and no invalidation of what was mapped.
                found, newly_present = "attach_tlbi", False
            kernel[found] = kernel.get(found, 0) + 1
    for name, (tlbi, sync) in sent.items():
        if name in counts:
            counts[name]["process"] |= {"tlbi": tlbi, "sync": sync}
            counts[name]["kernel"]["tlbi"] -= tlbi
            counts[name]["kernel"]["sync"] -= sync
    return counts


def is_newly_present(line: str) -> bool:
    """A device-selective context-cache invalidation (type 1, granularity 3) of domain 0.

    In caching mode domain 0 tags entries that were cached as not present (VT-d specification, section 6.1): software
    sends it, and an IOTLB invalidation after it, when it makes such an entry present, which is attaching a domain."""
    words = line.split()
    if words[:4] != VTD_WORDS or words[4] != "context-cache":
        return False
    low = int(words[8], 16)
    return low & 0xf == 1 and low >> 4 & 3 == 3 and low >> 16 & 0xffff == 0


def verdicts(machine: str, translation: str, counts: dict[str, dict], expected: dict[str, tuple]) -> list[tuple[str, str, str | None]]:
    """What the counts must be: closing 64 live maps costs one invalidation on every IOMMU that is traced."""
    found = []
    for name in CASES + NESTED + COMPARED.get(machine, []):
        case = f"counts/{name}"
        tlbi = (counts.get(name) or {}).get("kernel")
        if translation == "process" and tlbi is not None and name in expected:
            found.append(judge_process(name, counts[name], *expected[name]))
            continue
        if translation != "process" and name in NESTED:
            found.append((case, "skip", "the process does not own the tables of an SMMUv3"))
            continue
        if machine == "virtio":
            found.append((case, "skip", "virtio-iommu has no invalidation command: the unmap request is one"))
        elif tlbi is None:
            found.append((case, "fail", "the phase was not traced"))
        else:
            found.append(judge(machine, name, tlbi["tlbi"], counts))
    for other in sorted({name for names in COMPARED.values() for name in names} - set(COMPARED.get(machine, []))):
        found.append((f"counts/{other}", "skip", f"compared on {', '.join(COMPARED)}"))
    return found


def comparison(machine: str, counts: dict[str, dict]) -> str | None:
    """What recurring buffers cost under each protection, in one line; None on machines that do not compare."""
    names = ["lazy_10000", *COMPARED.get(machine, [])]
    found = {name: (counts.get(name) or {}).get("kernel") for name in names}
    if len(names) == 1 or not all(found.values()):
        return None
    return "invalidations for 10,000 maps of recurring buffers: " + ", ".join(
        f"{name.removeprefix('lazy_10000').strip('_') or 'automatic'} {count['tlbi']}" for name, count in found.items())


def judge_process(name: str, counted: dict[str, dict], sent: tuple[int, int], added: int) -> tuple[str, str, str | None]:
    """`sent` are the commands of the process and its waits, `added` what the kernel adds; the program says what is right."""
    case = f"counts/{name}"
    found = (counted["process"]["tlbi"], counted["process"]["sync"]), counted["kernel"]["tlbi"]
    good = found == (sent, added)
    wrong = f"the process sent {found[0]} invalidations and syncs and the kernel {found[1]}, expected {sent} and {added}"
    return case, "pass" if good else "fail", None if good else wrong


def judge(machine: str, name: str, tlbi: int, counts: dict[str, dict]) -> tuple[str, str, str | None]:
    case = f"counts/{name}"
    exact = {"unmap_1": 1, "close_64": 1, "map_64": 64 if machine == "vtd-caching" else 0}
    # On tables of the kernel's no queue saves an invalidation. In caching mode every map has one too.
    exact |= {other: 20_000 for other in COMPARED.get(machine, [])}
    if name == "lazy_10000":
        strict = 20_000 if machine in COMPARED else 10_000
        good = tlbi * 20 <= strict
        return case, "pass" if good else "fail", None if good else f"{tlbi} invalidations, and {strict} without a cache"
    # A list of 64 neighbours is one area, as a mapping of 64 pages.
    if (area := (counts.get("unmap_64") or {}).get("kernel")) is not None:
        exact["unmap_list_64"] = area["tlbi"]
    # One area of 64 pages: at least one invalidation, and at most one for each page of it.
    if name in exact:
        good = tlbi == exact[name]
        return case, "pass" if good else "fail", None if good else f"{tlbi} invalidations, {exact[name]} expected"
    pages = int(name.rsplit("_", 1)[1])
    good = 1 <= tlbi <= pages
    return case, "pass" if good else "fail", None if good else f"{tlbi} invalidations for {pages} pages"
