import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Lists keep to what their device takes.
@Suite struct ConstraintTests {
  private func withDomain(_ body: (DMADomain) throws -> Void) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: .iommufd)
      try body(device.dma)
      #expect(device.dma.statistics.liveMappings == 0 && device.dma.statistics.leakedBytes == 0)
      device.close()
    }
    #expect(machine.isClean)
  }

  @Test func constraintsThatNoSegmentMeets() throws {
    try withDomain { dma in
      let page = PageSize.fourKiB
      for constraints in [
        DMAConstraints(maxSegmentCount: 0), DMAConstraints(maxSegmentCount: .min),
        DMAConstraints(maxSegmentByteCount: 0),
        DMAConstraints(maxSegmentByteCount: -1), DMAConstraints(maxSegmentByteCount: 4095, alignment: page),
        DMAConstraints(boundary: PageSize(shift: 11), alignment: page),
      ] {
        let error = #expect(throws: DMAError.self) { try dma.setConstraints(constraints) }
        #expect(error?.code == .invalidArgument && error?.device == "0000:00:02.0" && error?.detail != nil)
        #expect(dma.constraints == DMAConstraints())
      }
      let good = DMAConstraints(maxSegmentCount: 1, maxSegmentByteCount: 4096, boundary: page, alignment: page)
      try dma.setConstraints(good)
      #expect(dma.constraints == good)
    }
  }

  @Test func eachDeviceHasItsOwn() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()])
    do {
      let first = try Device("0000:00:02.0", on: machine.host)
      let second = try Device("0000:00:03.0", on: machine.host, sharing: first.dma)
      try second.dma.setConstraints(DMAConstraints(maxSegmentByteCount: 4096))
      for (dma, count) in [(first.dma, 1), (second.dma, 3)] {
        var list = ScatterList()
        list.append(try first.dma.buffer(byteCount: 3 * 4096))
        let mapped = try dma.map(list, .toDevice)
        #expect(mapped.segmentCount == count && mapped.segments.count == count)
      }
      first.close()
      second.close()
    }
    #expect(machine.isClean)
  }

  /// The list is freed, and no call was made.
  @Test func moreSegmentsThanTheDeviceTakes() throws {
    try withDomain { dma in
      try dma.setConstraints(DMAConstraints(maxSegmentCount: 3))
      func list(_ count: Int) throws -> ScatterList {
        var list = ScatterList()
        // Shorter than a page: none joins the next.
        for _ in 0..<count { list.append(try dma.buffer(byteCount: 100)) }
        return list
      }
      let error = #expect(throws: DMAError.self) { _ = try dma.map(try list(4), .toDevice) }
      #expect(error?.code == .tooManySegments && error?.operation == "map(list)" && error?.remedy != nil)
      #expect(error?.device == "0000:00:02.0" && error?.detail?.contains("4 segments") == true)
      #expect(dma.statistics.systemCalls == 0 && dma.statistics.maps == 0)
      #expect(try dma.map(try list(3), .toDevice).segmentCount == 3)
    }
  }

  @Test func memoryThatBeginsWhereNoSegmentMay() throws {
    try withDomain { dma in
      let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe memory.deallocate() }
      try dma.setConstraints(DMAConstraints(alignment: PageSize(shift: 6)))
      for (offset, isRefused) in [(64, false), (4, true)] {
        var list = ScatterList()
        unsafe list.append(unsafe: UnsafeRawBufferPointer(rebasing: memory[offset...]), widening: true)
        do throws(DMAError) {
          let mapped = try dma.map(list, .toDevice)
          #expect(!isRefused && mapped.segments[0].address.rawValue % 64 == 0)
        } catch { #expect(isRefused && error.code == .unaligned && error.detail?.contains("64 B") == true) }
      }
    }
  }

  /// A range that is longer than the boundary begins on it; a shorter one lies between two, wherever the free space is.
  @Test(arguments: [1, 3, 17])
  func rangesAndTheBoundary(_ before: Int) throws {
    try withDomain { dma in
      let spacer = try dma.map(try dma.buffer(byteCount: before * 4096), .toDevice)
      try dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 16)))
      for (byteCount, count) in [(20_000, 1), (65536, 1), (65537, 2), (163_840, 3)] {
        var list = ScatterList()
        list.append(try dma.buffer(byteCount: byteCount))
        let mapped = try dma.map(list, .toDevice)
        #expect(mapped.segmentCount == count, "\(byteCount) bytes")
        for segment in mapped.segments {
          #expect(segment.address.rawValue >> 16 == (segment.address.rawValue + UInt64(segment.byteCount - 1)) >> 16)
        }
      }
      _ = try spacer.unmap()
    }
  }

  /// Two buffers that reach the boundary join, and one byte more keeps them apart.
  @Test(arguments: [(4096, 1), (4097, 2)])
  func joiningEndsAtTheBoundary(_ byteCount: Int, _ count: Int) throws {
    try withDomain { dma in
      try dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 16)))
      var list = ScatterList()
      for length in [61_440, byteCount, 100] { list.append(try dma.buffer(byteCount: length)) }
      let mapped = try dma.map(list, .toDevice)
      #expect(mapped.segments[0].byteCount == (count == 1 ? 65_536 : 61_440))
    }
  }

  /// The gaps that a boundary makes are free again, whether the list was mapped and unmapped or the kernel refused it.
  @Test(arguments: [1, 2, 3])
  func gapsComeBack(_ number: Int) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: .iommufd), dma = device.dma
      try dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 14)))
      func list() throws -> ScatterList {
        var list = ScatterList()
        for _ in 0..<3 { list.append(try dma.buffer(byteCount: 12288)) }
        return list
      }
      let first = try dma.map(try list(), .toDevice), address = first.address
      #expect(first.byteCount == 2 * 16384 + 12288)
      _ = try first.unmap()
      kernel.fail(number, of: "ioasMap", with: .noMemory)
      #expect(throws: DMAError.self) { _ = try dma.map(try list(), .toDevice) }
      let again = try dma.map(try list(), .toDevice).address
      #expect(again == address && dma.statistics.liveBytes == 0)
      device.close()
    }
    #expect(machine.isClean)
  }
}
