import IOMMU
import IOMMUSimulation
import Testing

/// Several SMMUs in one machine, and several devices in one group.
@Suite struct SMMUUnitTests {
  /// A machine with devices by address, in groups and behind SMMUs.
  static func host(_ base: SimulatedMachine, _ devices: [(address: String, group: Int, unit: Int)]) -> SimulatedHost {
    var machine = base
    machine.devices = devices.map { (address, group, unit) in
      var device = SimulatedDevice(address, EduModel(addressBits: 64))
      (device.group, device.iommuUnit) = (group, unit)
      return device
    }
    return SimulatedHost(machine)
  }

  static func open(_ kernel: SimulatedKernel, _ number: Int, _ iommufd: Int32) throws -> (device: Int32, id: UInt32) {
    let device = try kernel.open("/dev/vfio/devices/vfio\(number)")
    return (device, try kernel.vfioBind(device, iommufd: iommufd, token: nil))
  }

  static let two = [("0000:03:00.0", 0, 0), ("0000:04:00.0", 1, 1)] as [(address: String, group: Int, unit: Int)]

  @Test func inSysfs() throws {
    let host = Self.host(.smmuv3Nested, Self.two).host
    let units = try host.units()
    #expect(units.map(\.name) == ["smmu3.0x0000000009050000", "smmu3.0x0000000009150000"])
    #expect(units.map { $0.devices.map(\.description) } == [["0000:03:00.0"], ["0000:04:00.0"]])
    #expect(try host.devices(named: false).map(\.unit) == units.map(\.name))
    let vtd = Self.host(.vtd, Self.two).host
    #expect(try vtd.units().map(\.name) == ["dmar0", "dmar1"])
  }

  /// A page table of one SMMU is for no device of another: EINVAL everywhere.
  @Test func pageTablesAreOfOne() throws {
    let machine = Self.host(.smmuv3Nested, Self.two), kernel = machine.kernel
    let iommufd = try kernel.open("/dev/iommu"), ioas = try kernel.ioasAllocate(iommufd)
    let first = try Self.open(kernel, 0, iommufd), second = try Self.open(kernel, 1, iommufd)
    let parent = try kernel.hwptAllocate(iommufd, flags: 1, device: first.id, pageTable: ioas)
    let viommu = try kernel.viommuAllocate(iommufd, type: 1, device: first.id, pageTable: parent)
    #expect(throws: Errno.invalidArgument) { try kernel.vfioAttach(second.device, pageTable: parent) }
    #expect(throws: Errno.invalidArgument) {
      try kernel.viommuAllocate(iommufd, type: 1, device: second.id, pageTable: parent)
    }
    #expect(throws: Errno.invalidArgument) {
      try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: second.id, number: 1)
    }
    let data = HWPTData(type: 2, bytes: (1 | 4 << 1 as UInt64).littleEndianBytes + (0 as UInt64).littleEndianBytes)
    #expect(throws: Errno.invalidArgument) {
      try kernel.hwptAllocate(iommufd, flags: 0, device: second.id, pageTable: viommu, data: data)
    }
    let nested = try kernel.hwptAllocate(iommufd, flags: 0, device: first.id, pageTable: viommu, data: data)
    #expect(throws: Errno.invalidArgument) { try kernel.vfioAttach(second.device, pageTable: nested) }
    _ = try kernel.vfioAttach(first.device, pageTable: nested)
    // An IOAS makes a page table of its own for each.
    let one = try kernel.vfioAttach(first.device, pageTable: ioas)
    let other = try kernel.vfioAttach(second.device, pageTable: ioas)
    #expect(one != other)
    for descriptor in [first.device, second.device, iommufd] { kernel.close(descriptor) }
    #expect(machine.isClean)
    // VT-d's are for any unit.
    let vtd = Self.host(.vtd, Self.two).kernel
    let context = try vtd.open("/dev/iommu"), space = try vtd.ioasAllocate(context)
    let left = try Self.open(vtd, 0, context), right = try Self.open(vtd, 1, context)
    #expect(try vtd.vfioAttach(left.device, pageTable: space) == vtd.vfioAttach(right.device, pageTable: space))
    for descriptor in [left.device, right.device, context] { vtd.close(descriptor) }
  }

  /// The library's domain over two SMMUs, by iommufd and by type1: both devices reach the same memory.
  @Test(arguments: [Interface.iommufd, .type1])
  func oneDomain(_ interface: Interface) throws {
    var base = SimulatedMachine.smmuv3
    base.interfaces = [interface]
    if interface == .type1 { base.hasDeviceNodes = false }
    let machine = Self.host(base, Self.two)
    do {
      let first = try Device("0000:03:00.0", on: machine.host)
      let early = try first.dma.map(try first.dma.buffer(byteCount: 4096), .bidirectional)
      let second = try Device("0000:04:00.0", on: machine.host, sharing: first.dma)
      let late = try first.dma.map(try first.dma.buffer(byteCount: 4096), .bidirectional)
      let addresses = [early.address, late.address]
      for (device, address) in addresses.flatMap({ [(first, $0), (second, $0)] }) {
        let bar = try device.registers(bar: 0)
        bar.store(0x40000 as UInt64, at: 0x80)
        bar.store(address.rawValue, at: 0x88)
        bar.store(8 as UInt64, at: 0x90)
        bar.store(3 as UInt64, at: 0x98)
      }
      #expect(machine.faults.isEmpty && machine.counters.bytesWritten == 32)
      _ = try early.unmap()
      _ = try late.unmap()
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// All devices of a group have numbers, or none is attached; each has its own in events.
  @Test func twoFunctionsInAGroup() throws {
    let machine = Self.host(.smmuv3Nested, [("0000:03:00.0", 0, 0), ("0000:03:00.1", 0, 0)]), kernel = machine.kernel
    let iommufd = try kernel.open("/dev/iommu"), ioas = try kernel.ioasAllocate(iommufd)
    let first = try Self.open(kernel, 0, iommufd), second = try Self.open(kernel, 1, iommufd)
    let parent = try kernel.hwptAllocate(iommufd, flags: 1, device: first.id, pageTable: ioas)
    let viommu = try kernel.viommuAllocate(iommufd, type: 1, device: first.id, pageTable: parent)
    let memory = try Memory(kernel)
    _ = try kernel.ioasMap(iommufd, ioas: ioas, flags: 7, address: memory.address, byteCount: 8192, iova: 0x10_0000)
    memory[0] = word(25, 1 << 30, 1 << 31, 4 << 32, 1 << 41, 1 << 45, 1 << 46, 7 << 48)
    memory[8] = 0x10_1000
    let entry = (1 | 5 << 1 | 0x10_0000 as UInt64).littleEndianBytes + (0 as UInt64).littleEndianBytes
    let nested = try kernel.hwptAllocate(
      iommufd, flags: 0, device: first.id, pageTable: viommu, data: HWPTData(type: 2, bytes: entry))
    _ = try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: first.id, number: 0x11)
    #expect(throws: Errno.noEntry) { try kernel.vfioAttach(first.device, pageTable: nested) }
    #expect(machine.smmuCounters().kernel.configurationInvalidations == 0)
    #expect(throws: Errno.exists) {
      try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: second.id, number: 0x11)
    }
    _ = try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: second.id, number: 0x12)
    let (_, events) = try kernel.eventQueueAllocate(iommufd, viommu: viommu, type: 1, depth: 8)
    _ = try kernel.vfioAttach(first.device, pageTable: nested)
    #expect(machine.smmuCounters().kernel[.invalidateSTE] == 4)
    for device in [first, second] {
      let registers = Registers(kernel: kernel, device: device.device)
      try registers.enable()
      try registers.write(0x88, 0x5000, width: 8)
      try registers.write(0x80, 0x40000, width: 8)
      try registers.write(0x90, 8, width: 8)
      try registers.write(0x98, 3, width: 8)
    }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 80, alignment: 8)
    defer { unsafe buffer.deallocate() }
    #expect(try unsafe kernel.readEventQueue(events, buffer) == 80)
    let words = [8, 48].map { unsafe buffer.loadUnaligned(fromByteOffset: $0, as: UInt64.self) }
    #expect(words == [0x11 << 32 | 0x10, 0x12 << 32 | 0x10])
    // The tag is flushed with the last of them.
    _ = try kernel.vfioAttach(second.device, pageTable: nested)
    try kernel.vfioDetach(first.device)
    #expect(machine.counters.invalidations == 0)
    try kernel.vfioDetach(second.device)
    #expect(machine.counters.invalidations == 1)
    for descriptor in [events, first.device, second.device, iommufd] { kernel.close(descriptor) }
    memory.close()
    #expect(machine.isClean)
  }
}
