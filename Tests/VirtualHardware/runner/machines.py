"""The machines: which IOMMU, and which PCI devices at which guest addresses.

Every machine has the same devices at the same addresses, so that a suite is written once:

    00:00.0   host bridge
    00:01.0   virtio-iommu, on machine `virtio` only
    00:02.0   edu, DMA mask of 32 bits
    00:03.0   edu, DMA mask of 32 bits
    00:04.0   edu, DMA mask of 28 bits: the device drops the bits above, silently
    00:05.0   NVMe controller, one namespace of 64 MiB in 512-byte blocks (a raw file)
    00:06.0   PCIe root port
    01:00.0     igb: MSI-X, function-level reset, SR-IOV (up to 7 functions)

and three devices that share one IOMMU group, whose addresses the guest's variable SHARED_GROUP has:

    vtd-*       virtio, smmuv3, smmuv3-nested
    00:07.0     -         PCIe-to-PCI bridge, in the same group
    02:01.0     00:07.0   edu, DMA mask of 32 bits
    02:02.0     00:07.1   edu, DMA mask of 32 bits
    02:03.0     00:07.2   virtio-rng, which the kernel's virtio-pci drives: it makes the group not
                          viable until it is unbound, and has a driver for `restore` to give back

On VT-d they stand behind a conventional PCI bridge. QEMU's virtio-iommu does not know devices
behind one, and Linux's SMMUv3 driver takes only the first; there they are functions of one slot,
which share a group for want of ACS.

`smmuv3-nested` is `smmuv3` described by ACPI instead of a device tree, hence booted by firmware, with a
table changed so that Linux lets a process own stage-1 tables: see iort-canwbs.py.

Device ids: edu 1234:11e8, NVMe 1b36:0010, igb 8086:10c9, virtio-rng 1af4:1005. x86 machines
have the chipset's functions at 00:1f.x as well. A device added with --device takes the first
free address from 00:08.0 unless it names one; hardware-test adds three edu devices from there on
where it runs the suites.
"""

from dataclasses import dataclass

EDU = "edu,dma_mask=0xffffffff"
# What hardware-test adds for the suites, so that eight devices have a group of their own.
SPARE_EDUS = [f"{EDU},addr={slot}.0" for slot in ("08", "09", "0a")]
DISK_BYTES = 64 << 20
FIRMWARE = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"


@dataclass(frozen=True)
class Machine:
    architecture: str
    """As the kernel names it: x86_64 or arm64."""
    intel: str | None = None
    """Options of QEMU's VT-d."""
    kernel_arguments: str = ""
    nests: bool = False
    """Whether a process can own stage-1 tables: whether --translation process is possible."""
    nested: bool = False
    """Whether it boots for that whatever the translation; others do when asked for --translation process."""
    translation: str = "kernel"
    """Who owns the stage-1 tables unless --translation says so."""
    rows: tuple[tuple[str, str], ...] = (("iommufd", "kernel"), ("type1", "kernel"))
    """Interface and translation of each of the machine's rows in hardware-test."""

    @property
    def emulator(self) -> str:
        return {"x86_64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[self.architecture]

    @property
    def console(self) -> str:
        """The kernel's serial port. The command's output has the next one to itself."""
        return {"x86_64": "ttyS0", "arm64": "ttyAMA0"}[self.architecture]

    @property
    def port(self) -> str:
        return self.console[:-1] + "1"

    @property
    def timers(self) -> str:
        """The kernel's check of its timer at boot must not be a race on a busy host."""
        return "no_timer_check" if self.architecture == "x86_64" else ""

    def board(self, iommu: bool, interrupt_remapping: bool, nested: bool) -> list[str]:
        """Board, CPU and IOMMU."""
        if self.architecture == "arm64":
            model = "smmuv3" if iommu else "none"
            arguments = ["-M", f"virt,gic-version=3,iommu={model}", "-cpu", "max,pauth-impdef=on"]
            # Nesting needs an ACPI table to be changed, hence firmware that brings ACPI.
            return arguments + (["-global", "arm-smmuv3.stage=nested", "-bios", FIRMWARE] if nested else [])
        # Without a split irqchip QEMU has no interrupt remapping to offer.
        # A processor without fast string instructions, since QEMU's are slow: a byte a turn. With them kernel and C library copied
        # 64 KiB in 0.4 ms, without in 0.04.
        arguments = ["-M", "q35,kernel-irqchip=split", "-cpu", "max,-erms,-fsrm,-fzrm,-fsrs"]
        if iommu and self.intel is not None:
            remapping = "on" if interrupt_remapping else "off"
            arguments += ["-device", f"intel-iommu,intremap={remapping}{self.intel}"]
        elif iommu:
            arguments += ["-device", "virtio-iommu-pci,addr=01.0"]
        return arguments

    def devices(self, disk: str) -> list[str]:
        """QEMU's arguments for the devices in the table above."""
        arguments = [
            "-device", f"{EDU},addr=02.0",
            "-device", f"{EDU},addr=03.0",
            "-device", "edu,addr=04.0",
            "-drive", f"id=namespace,if=none,format=raw,file={disk.replace(',', ',,')}",
            "-device", "nvme,addr=05.0,serial=swift-iommu,drive=namespace",
            "-device", "pcie-root-port,id=root-port,chassis=1,addr=06.0",
            "-device", "igb,bus=root-port",
        ]
        if self.bridged:
            arguments += ["-device", "pcie-pci-bridge,id=bridge,addr=07.0"]
        for model, address in zip((EDU, EDU, "virtio-rng-pci"), self.shared_group):
            slot, function = address[-4:-2], address[-1]
            arguments += ["-device", f"{model},bus=bridge,addr={slot}.{function}" if self.bridged
                          else f"{model},multifunction=on,addr={slot}.{function}"]
        return arguments

    @property
    def bridged(self) -> bool:
        return self.intel is not None

    @property
    def shared_group(self) -> list[str]:
        """The devices that share a group."""
        if self.bridged:
            return ["0000:02:01.0", "0000:02:02.0", "0000:02:03.0"]
        return ["0000:00:07.0", "0000:00:07.1", "0000:00:07.2"]


# virtio-iommu remaps no interrupts, so the kernel must be told that its devices are trusted.
TRUSTED_INTERRUPTS = (
    "iommufd.allow_unsafe_interrupts=1 vfio_iommu_type1.allow_unsafe_interrupts=1")

MACHINES = {
    "vtd-legacy": Machine("x86_64", intel=""),
    "vtd-scalable": Machine("x86_64", intel=",x-scalable-mode=on"),
    "vtd-flts": Machine("x86_64", intel=",x-scalable-mode=on,x-flts=on"),
    "vtd-caching": Machine("x86_64", intel=",caching-mode=on"),
    "virtio": Machine("x86_64", kernel_arguments=TRUSTED_INTERRUPTS),
    "smmuv3": Machine("arm64", nests=True),
    # A container of type1 never nests, and its calls are those of `smmuv3`.
    "smmuv3-nested": Machine("arm64", nests=True, nested=True, rows=(("iommufd", "kernel"), ("iommufd", "process"))),
}
