"""Writes a guest's initial file system: a cpio archive in the kernel's `newc` format."""

import stat
from pathlib import Path

import elf

USERS = "root:x:0:0:root:/tmp:/bin/sh\ndriver:x:1000:1000:driver:/tmp:/bin/sh\n"
GROUPS = "root:x:0:\ndriver:x:1000:\nvfio:x:1001:driver\n"
NAMES = Path("/usr/share/misc/pci.ids")


class Archive:
    """Folders come before what is in them, and nothing is written twice."""

    def __init__(self, path: Path):
        self.file = open(path, "wb")
        self.names: set[str] = set()

    def write(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)):
        parent = name.rpartition("/")[0]
        if parent and parent not in self.names:
            self.write(parent, stat.S_IFDIR | 0o755)
        if name in self.names:
            return
        self.names.add(name)
        text = name.encode() + b"\0"
        # magic, inode, mode, uid, gid, links, mtime, size, device of the file, device, name, sum
        fields = (len(self.names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(text), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + text
        self.file.write(header + bytes(-len(header) % 4))
        self.file.write(data)
        self.file.write(bytes(-len(data) % 4))

    def add(self, name: str, data: bytes | str, mode: int = 0o644):
        self.write(name, stat.S_IFREG | mode, data if isinstance(data, bytes) else data.encode())

    def link(self, name: str, target: str):
        self.write(name, stat.S_IFLNK | 0o777, target.encode())

    def copy(self, path: Path, name: str):
        """A file or a folder, links within it followed."""
        if path.is_dir():
            self.write(name, stat.S_IFDIR | 0o755)
            for entry in sorted(path.iterdir()):
                self.copy(entry, f"{name}/{entry.name}")
        else:
            executable = path.stat().st_mode & 0o111
            self.add(name, path.read_bytes(), 0o755 if executable else 0o644)

    def close(self):
        self.write("TRAILER!!!", 0)
        self.file.close()


def write(path: Path, guest: Path, busybox: Path, files: list[Path], folders: list[Path],
          tables: dict[str, Path], command: str, settings: str):
    """Everything a guest has: busybox, `guest`'s scripts, and `files` at / with their libraries.

    ACPI `tables` replace the machine's own of the same kind; the kernel wants them first, and their names short.

    Libraries all lie in /lib, with the other usual names leading there: the loader's path in a
    program, like every folder it looks in, then ends at the same place.
    """
    archive = Archive(path)
    architecture = elf.ELF(busybox).architecture
    for name, table in tables.items():
        archive.copy(table, f"kernel/firmware/acpi/{name}.aml")
    for name in ("dev", "proc", "sys", "tmp"):
        archive.write(name, stat.S_IFDIR | 0o755)
    archive.write("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.write("lib", stat.S_IFDIR | 0o755)
    for name in ("lib64", "usr/lib", "usr/lib64"):
        archive.link(name, "/lib")
    archive.link("usr/bin", "/bin")
    # Ours first: busybox has an `init` of its own.
    for script in sorted(guest.iterdir()):
        archive.copy(script, f"bin/{script.name}")
    archive.copy(busybox, "bin/busybox")
    for applet in (busybox.parent / "applets").read_text().split():
        archive.link(f"bin/{applet}", "busybox")
    archive.add("etc/passwd", USERS)
    archive.add("etc/group", GROUPS)
    archive.add("etc/guest/command", command)
    archive.add("etc/guest/settings", settings)
    if NAMES.exists():
        archive.copy(NAMES, NAMES.relative_to("/").as_posix())

    for file in files:
        if file.name in archive.names:
            raise FileExistsError(f"two files would be /{file.name} in the guest")
        archive.copy(file, file.name)
    programs = [file for file in files if elf.matches(file, architecture)]
    for name, library in elf.libraries(programs, folders).items():
        archive.add(f"lib/{name}", library.read_bytes(), 0o755)
    archive.close()
