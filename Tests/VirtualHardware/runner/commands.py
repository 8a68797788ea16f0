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

# Commands of Linux's for an unmap of an iommufd on its own tables of an SMMUv3, with a sync each. How many a type1 container takes
# depends on where its pages happen to be neighbours in memory.
KERNEL_UNMAPS = {"unmap_1": 1, "unmap_64": 1, "unmap_512": 2, "unmap_1024": 3, "unmap_list_64": 1}

VTD_WORDS = "vtd_inv_desc invalidate desc type".split()
VTD_KINDS = {"iotlb": "tlbi", "p-iotlb": "tlbi", "context-cache": "cfgi", "pasid-cache": "cfgi", "wait": "sync"}


def patterns(machine: str) -> dict[str, str]:
    """QEMU's trace events of commands, and of what those by address cover; virtio-iommu has none, an unmap request is the
    invalidation."""
    if machine == "virtio":
        return {}
    if machines.MACHINES[machine].intel is not None:
        return {"commands": "vtd_inv_desc"}
    return {"commands": "smmuv3_cmdq_opcode", "ranges": "smmuv3_range_inval"}


def command(line: str) -> str | None:
    """`TLBI_NH_VA`, `iotlb`: what a command is, from the first line that QEMU traces of it."""
    event, _, rest = line.partition(" ")
    if event == "smmuv3_cmdq_opcode":
        return rest.rpartition("SMMU_CMD_")[2].strip()
    # Every descriptor has this event, with its type as the word after these; not every type has one of its own.
    words = line.split()
    return words[4] if words[:4] == VTD_WORDS and len(words) > 4 else None


def kind(command: str) -> str | None:
    """`tlbi`, `cfgi` or `sync`."""
    if command.startswith(("TLBI", "CFGI")):
        return command[:4].lower()
    return "sync" if command == "SYNC" else VTD_KINDS.get(command)


def pages(line: str) -> int:
    """How many pages of stage 1 a command by address covers."""
    words = dict(word.partition("=")[::2] for word in line.split())
    return int(words["num_pages"], 16) if words.get("stage") == "1" else 0


def by_phase(trace: Path, phases: dict[int, str]):
    """The trace's lines, each with the phase that it lies in, and an empty line where one begins.

    A phase begins at the mark with its number and ends at the next mark, whichever that is."""
    current = None
    for line in trace.read_text(errors="replace").splitlines() if trace.exists() else []:
        if line.startswith("mark "):
            current, line = phases.get(int(line.split()[1])), ""
        if current is not None:
            yield current, line


def count(traces: dict[str, Path], phases: dict[int, str], sent: dict[str, tuple[int, int]]) -> dict[str, dict]:
    """`{case: {process: {…}, kernel: {tlbi, cfgi, sync}, commands: {…}, pages}}`; null where the machine has no trace.

    `sent` are the invalidations and syncs that the process says are its own. `commands` are all of them, by the IOMMU's own
    names, and `pages` what those by address cover, where the trace tells."""
    if not traces:
        return {name: {"process": None, "kernel": None, "commands": None, "pages": None} for name in phases.values()}
    nothing = {"tlbi": 0, "cfgi": 0, "sync": 0}
    counts = {
        name: {"process": dict(nothing), "kernel": dict(nothing), "commands": {}, "pages": 0 if "ranges" in traces else None}
        for name in phases.values()}
    newly_present = False
    for phase, line in by_phase(traces["commands"], phases):
        what = command(line)
        if what is None:
            newly_present = newly_present and line != ""
            continue
        found, kernel = kind(what), counts[phase]["kernel"]
        if found == "cfgi":
            newly_present = is_newly_present(line)
        elif found == "tlbi" and newly_present:
            # Part of the same act, attaching, and no invalidation of what was mapped.
            found, newly_present = "attach_tlbi", False
        for table, name in ((kernel, found), (counts[phase]["commands"], what)):
            if name is not None:
                table[name] = table.get(name, 0) + 1
    for phase, line in by_phase(traces["ranges"], phases) if "ranges" in traces else []:
        counts[phase]["pages"] += pages(line)
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


def verdicts(
        machine: str, interface: str, translation: str, counts: dict[str, dict], expected: dict[str, dict[str, int]]
) -> list[tuple[str, str, str | None]]:
    """What the counts must be: closing 64 live maps costs one invalidation on every IOMMU that is traced."""
    found = []
    for name in CASES + NESTED + COMPARED.get(machine, []):
        case = f"counts/{name}"
        tlbi = (counts.get(name) or {}).get("kernel")
        if translation == "process" and tlbi is not None and name in expected:
            found.append(judge_process(name, counts[name], expected[name]))
            continue
        if translation != "process" and name in NESTED:
            found.append((case, "skip", "the process does not own the tables of an SMMUv3"))
            continue
        if machine == "virtio":
            found.append((case, "skip", "virtio-iommu has no invalidation command: the unmap request is one"))
        elif tlbi is None:
            found.append((case, "fail", "the phase was not traced"))
        else:
            found.append(judge(machine, interface, name, tlbi["tlbi"], counts))
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


def expectation(words: list[str]) -> dict[str, int]:
    """`process:TLBI_NH_VA=1 kernel:SYNC=2 pages=64`, as a program in the guest says what is right."""
    return {name: int(number) for name, _, number in (word.partition("=") for word in words)}


def judge_process(name: str, counted: dict[str, dict], expected: dict[str, int]) -> tuple[str, str, str | None]:
    """Opcode by opcode, whoever sent it, and the process's own in all. The program says what is right.

    Commands for configurations are the kernel's business: CFGI with a sync each, PREFETCH_CONFIG without."""
    case = f"counts/{name}"
    wanted: dict[str, int] = {}
    sent = {"tlbi": 0, "cfgi": 0, "sync": 0}
    for what, number in expected.items():
        sender, colon, opcode = what.partition(":")
        if colon:
            wanted[opcode] = wanted.get(opcode, 0) + number
        if sender == "process":
            sent[kind(opcode)] += number
    found = {what: number for what, number in counted["commands"].items() if not what.startswith(("CFGI", "PREFETCH"))}
    found["SYNC"] = found.get("SYNC", 0) - counted["kernel"]["cfgi"]
    found = {what: number for what, number in found.items() if number != 0}
    if found != wanted:
        return case, "fail", f"the SMMU executed {in_words(found)}, expected {in_words(wanted)}"
    if counted["process"] != sent:
        return case, "fail", f"the process says it sent {in_words(counted['process'])}, expected {in_words(sent)}"
    if counted["pages"] != expected["pages"]:
        return case, "fail", f"commands by address cover {counted['pages']} pages, expected {expected['pages']}"
    return case, "pass", None


def table(counts: dict[str, dict], translation: str) -> list[str]:
    """The counts for people: on tables of the process a line a case, else all in one."""
    traced = {name: counted for name, counted in counts.items() if counted["commands"] is not None}
    if translation != "process":
        sums = [f"{name} {counted['kernel']['tlbi']} + {counted['kernel']['sync']}" for name, counted in traced.items()]
        return [f"invalidations + syncs: {', '.join(sums)}"] if sums else []
    width = max(map(len, traced), default=0)
    lines = [f"{'commands of':{width}}  process  all"]
    for name, counted in traced.items():
        own = f"{counted['process']['tlbi']} + {counted['process']['sync']}"
        covered = f" (pages by address: {counted['pages']})" if counted["pages"] else ""
        lines.append(f"{name:{width}}  {own:7}  {in_words(counted['commands'])}{covered}")
    return lines if traced else []


def in_words(commands: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(commands.items())) or "nothing"


def judge(machine: str, interface: str, name: str, tlbi: int, counts: dict[str, dict]) -> tuple[str, str, str | None]:
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
    # One for the range, and one for each table that goes as a whole.
    if machine.startswith("smmuv3") and interface == "iommufd" and name in KERNEL_UNMAPS:
        wanted = {"TLBI_NH_VA": KERNEL_UNMAPS[name], "SYNC": KERNEL_UNMAPS[name]}
        found = counts[name]["commands"]
        return case, "pass" if found == wanted else "fail", None if found == wanted else (
            f"the SMMU executed {in_words(found)}, expected {in_words(wanted)}")
    # One area of 64 pages: at least one invalidation, and at most one for each page of it.
    if name in exact:
        good = tlbi == exact[name]
        return case, "pass" if good else "fail", None if good else f"{tlbi} invalidations, {exact[name]} expected"
    pages = int(name.rsplit("_", 1)[1])
    good = 1 <= tlbi <= pages
    return case, "pass" if good else "fail", None if good else f"{tlbi} invalidations for {pages} pages"
