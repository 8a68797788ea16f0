import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The whole way on the simulated machine: open, map, let the device move data, unmap, see that it cannot any more.
struct EndToEndTests {
  /// Lets an edu device move bytes: `toDevice` from memory into its buffer, else from its buffer into memory.
  static func transfer(_ bar: Registers, _ address: IOVA, _ count: Int, toDevice: Bool) throws {
    let inside: UInt64 = 0x40000
    bar.store(toDevice ? address.rawValue : inside, at: 0x80)
    bar.store(toDevice ? inside : address.rawValue, at: 0x88)
    bar.store(UInt64(count), at: 0x90)
    bar.store(UInt64(toDevice ? 1 : 3), at: 0x98)
    for _ in 0..<1000 where bar.load(at: 0x98, as: UInt64.self) & 1 != 0 {}
  }

  @Test(arguments: Interface.allCases, [SimulatedMachine.IOMMUKind.vtd, .smmuv3])
  func dataGoesThereAndBack(_ interface: Interface, _ kind: SimulatedMachine.IOMMUKind) throws {
    let machine = SimulatedHost(kind == .vtd ? .vtd : .smmuv3, devices: ["0000:00:02.0": EduModel()])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
      try device.dma.setMask(.bits(28))
      let bar = try device.registers(bar: 0)
      var frame = try device.dma.buffer(byteCount: 1514)
      for index in 0..<1514 { frame.store(UInt8(truncatingIfNeeded: index &* 7), at: index) }
      let out = try device.dma.map(frame, .toDevice)
      #expect(out.address.rawValue < 1 << 28 && out.byteCount == 1514)
      try Self.transfer(bar, out.address, 1514, toDevice: true)
      _ = try out.unmap()
      let back = try device.dma.map(try device.dma.buffer(byteCount: 1514), .fromDevice)
      let address = back.address
      try Self.transfer(bar, address, 1514, toDevice: false)
      let received = try back.unmap()
      let isSame = (0..<1514).allSatisfy { received.load(at: $0, as: UInt8.self) == UInt8(truncatingIfNeeded: $0 &* 7) }
      #expect(isSame)
      #expect(machine.faults.isEmpty)
      try Self.transfer(bar, address, 64, toDevice: false)
      #expect(machine.faults.count >= 1)
      #expect(device.dma.statistics.maps == 2 && device.dma.statistics.liveMappings == 0)
      _ = received.byteCount
      device.close()
    }
    #expect(machine.isClean)
  }

  @Test(arguments: Interface.allCases)
  func closingCostsOneInvalidation(_ interface: Interface) throws {
    let machine = SimulatedHost(.vtd, devices: ["0000:00:02.0": EduModel()])
    let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
    // Of the kernel's or of the process's page tables: the flush of the tag.
    var list = ScatterList()
    for _ in 0..<64 { list.append(try device.dma.buffer(byteCount: 4096)) }
    let mapped = try device.dma.map(list, .fromDevice)
    let before = machine.counters.invalidations
    device.close()
    #expect(machine.counters.invalidations == before + 1)
    let again = try mapped.unmap()
    let count = again.count
    #expect(count == 64)
  }

  @Test func mappingsOutliveDeviceAndDomain() throws {
    let machine = SimulatedHost(.vtd, devices: ["0000:00:02.0": EduModel()])
    func make() throws -> Mapping {
      let device = try Device("0000:00:02.0", on: machine.host)
      return try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
    }
    do {
      let mapping = try make()
      #expect(mapping.byteCount == 64)
      let buffer = try mapping.unmap()
      let count = buffer.byteCount
      #expect(count == 64)
    }
    #expect(machine.isClean)
  }
}
