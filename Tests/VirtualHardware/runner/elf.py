"""Which shared libraries an ELF file needs: what `ldd` names, for any architecture."""

import os
import struct
import subprocess
from pathlib import Path

MACHINE = {62: "x86_64", 183: "arm64"}
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 1, 5, 15, 29


class NotELF(Exception):
    pass


class ELF:
    """The dynamic section of a 64-bit little-endian file."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            if file.read(6) != b"\x7fELF\x02\x01":
                raise NotELF(path)
            file.seek(0)
            self.data = file.read()
        kind, machine = struct.unpack_from("<HH", self.data, 16)
        self.architecture = MACHINE.get(machine, f"ELF machine {machine}")
        offset, = struct.unpack_from("<Q", self.data, 32)
        size, count = struct.unpack_from("<HH", self.data, 54)
        # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
        self.segments = [
            struct.unpack_from("<IIQQQQQQ", self.data, offset + i * size) for i in range(count)]
        self.interpreter: str | None = None
        self.needed: list[str] = []
        self.search: list[str] = []
        for kind, _, start, _, _, length, *_ in self.segments:
            if kind == PT_INTERP:
                self.interpreter = self.data[start:start + length].rstrip(b"\0").decode()
            elif kind == PT_DYNAMIC:
                self.read_dynamic(path, start, length)

    @property
    def is_program(self) -> bool:
        return self.interpreter is not None

    def read_dynamic(self, path: Path, start: int, length: int):
        entries = list(struct.iter_unpack("<QQ", self.data[start:start + length]))
        strings = next((value for tag, value in entries if tag == DT_STRTAB), None)
        if strings is None:
            return
        strings = self.file_offset(strings)

        def text(offset: int) -> str:
            begin = strings + offset
            return self.data[begin:self.data.index(b"\0", begin)].decode()

        self.needed = [text(value) for tag, value in entries if tag == DT_NEEDED]
        for tag, value in entries:
            if tag in (DT_RPATH, DT_RUNPATH):
                origin = str(path.resolve().parent)
                self.search += text(value).replace("$ORIGIN", origin).split(":")

    def file_offset(self, address: int) -> int:
        for kind, _, start, virtual, _, size, *_ in self.segments:
            if kind == PT_LOAD and virtual <= address < virtual + size:
                return start + address - virtual
        raise ValueError(f"address 0x{address:x} is in no segment")


def libraries(programs: list[Path], folders: list[Path]) -> dict[str, Path]:
    """Every library that the programs need, directly or not, by the name they ask for it.

    Looked for in a file's own run path, then in `folders`. The dynamic loader is among them.
    """
    found: dict[str, Path] = {}
    queue = [(program, ELF(program)) for program in programs]
    while queue:
        path, file = queue.pop()
        wanted = file.needed + ([os.path.basename(file.interpreter)] if file.interpreter else [])
        for name in wanted:
            if name in found:
                continue
            candidates = [Path(folder) / name for folder in [*file.search, *folders]]
            candidate = next((c for c in candidates if matches(c, file.architecture)), None)
            if candidate is None:
                raise FileNotFoundError(f"{path} needs {name}, which is in none of: "
                                        + " ".join(map(str, folders)))
            found[name] = candidate
            queue.append((candidate, ELF(candidate)))
    return found


def matches(path: Path, architecture: str) -> bool:
    try:
        return ELF(path).architecture == architecture
    except (OSError, NotELF):
        return False


def own_folders() -> list[Path]:
    """Where this machine's dynamic loader looks, by its cache."""
    try:
        cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    except OSError:
        cache = ""
    paths = [line.split(" => ")[1] for line in cache.splitlines() if " => " in line]
    folders = [os.path.dirname(path) for path in paths] + ["/lib64", "/lib", "/usr/lib"]
    return [Path(folder) for folder in dict.fromkeys(folders)]
