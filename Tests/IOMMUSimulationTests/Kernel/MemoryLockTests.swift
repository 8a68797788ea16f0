import IOMMU
import IOMMUSimulation
import Testing

/// Pinned memory: whose account, which limit, what procfs shows.
@Suite struct MemoryLockTests {
  static var limited: SimulatedMachine {
    var machine = SimulatedMachine.vtd
    (machine.memoryLockLimit, machine.canLockMemory) = (4 * 4096, false)
    return machine
  }

  /// A value of /proc/self/status in kilobytes.
  func status(_ name: String, _ kernel: any Kernel) throws -> Int? {
    let text = String(decoding: try kernel.readFile("/proc/self/status"), as: UTF8.self)
    let line = text.split(separator: "\n").first { $0.hasPrefix(name + ":") }
    return line?.split(whereSeparator: { " \t".contains($0) }).dropFirst().first.flatMap { Int($0) }
  }

  @Test func iommufdCountsByUser() throws {
    let rig = try IOMMUFDRig(Self.limited)
    try rig.map(at: 0x1000, byteCount: 3 * 4096)
    #expect(throws: Errno.noMemory) { try rig.map(at: 0x10000, byteCount: 2 * 4096) }
    try rig.map(at: 0x10000)
    #expect(try status("VmPin", rig.kernel) == 16)
    #expect(try status("VmLck", rig.kernel) == 0)
    // The same memory again is pinned again.
    #expect(throws: Errno.noMemory) { try rig.map(at: 0x20000) }
    try rig.unmap(0x10000, 4096)
    try rig.map(at: 0x20000)
    rig.close()
  }

  @Test func otherProcessesOfTheUserCount() throws {
    var machine = Self.limited
    machine.bytesPinnedByOthers = 2 * 4096
    let rig = try IOMMUFDRig(machine)
    #expect(throws: Errno.noMemory) { try rig.map(at: 0x1000, byteCount: 3 * 4096) }
    try rig.map(at: 0x1000, byteCount: 2 * 4096)
    #expect(try status("VmPin", rig.kernel) == 8)
    rig.close()
    // type1 counts this process alone.
    let container = try ContainerRig(machine)
    try container.map(at: 0x1000, byteCount: 4 * 4096)
    #expect(throws: Errno.noMemory) { try container.map(at: 0x10000) }
    #expect(try status("VmLck", container.kernel) == 16)
    #expect(try status("VmPin", container.kernel) == 0)
    let lines = try container.kernel.kernelLog(from: 0).map(\.text)
    #expect(lines == ["vfio_pin_pages_remote: RLIMIT_MEMLOCK (16384) exceeded"])
    container.close()
  }

  @Test func capabilityLiftsTheLimit() throws {
    var machine = Self.limited
    machine.canLockMemory = true
    let rig = try IOMMUFDRig(machine)
    #expect(rig.kernel.hasCapability(14))
    try rig.map(at: 0x1000, byteCount: 8 * 4096)
    #expect(try status("VmPin", rig.kernel) == 32)
    rig.close()
    let container = try ContainerRig(machine)
    try container.map(at: 0x1000, byteCount: 8 * 4096)
    #expect(try status("VmLck", container.kernel) == 32)
    container.close()
  }

  @Test func pageTablesPinWhatIsThere() throws {
    let rig = try IOMMUFDRig(Self.limited)
    // Without a page table a map pins nothing, so it passes; the page table then fails and leaves no trace.
    let big = try rig.kernel.ioasAllocate(rig.iommufd)
    for page in 0..<5 as Range<UInt64> {
      _ = try rig.kernel.ioasMap(
        rig.iommufd, ioas: big, flags: 7, address: rig.memory.address + page * 4096, byteCount: 4096,
        iova: 0x10000 + page * 4096)
    }
    let before = rig.machine.kernel.census
    #expect(throws: Errno.noMemory) {
      try rig.kernel.hwptAllocate(rig.iommufd, flags: 0, device: rig.deviceID, pageTable: big)
    }
    #expect(throws: Errno.noMemory) { try rig.kernel.vfioAttach(rig.device, pageTable: big) }
    #expect(rig.machine.kernel.census == before)
    rig.close()
  }

  @Test func limitIsReported() {
    let kernel = SimulatedKernel(.unprivileged)
    #expect(kernel.memoryLockLimit() == 8 << 20)
    #expect(!kernel.hasCapability(14) && !kernel.hasCapability(21))
    #expect(kernel.effectiveUser() == 1000)
  }
}
