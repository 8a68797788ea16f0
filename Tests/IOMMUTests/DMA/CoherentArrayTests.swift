import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Where elements of coherent arrays lie.
@Suite struct CoherentArrayTests {
  private struct Triple: BitwiseCopyable { var a = UInt64(0), b = UInt64(0), c = UInt64(0) }
  private struct Large: BitwiseCopyable { var bytes = InlineArray<5000, UInt8>(repeating: 0) }

  private func isWhole<Element>(_ array: borrowing CoherentArray<Element>, _ size: UInt64) -> Bool {
    for index in 0..<array.count {
      let start = array.address(of: index).rawValue
      if start / size != (start + UInt64(MemoryLayout<Element>.size - 1)) / size { return false }
    }
    return true
  }

  private func withDomain(_ body: (DMADomain) throws -> Void) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host)
      try body(device.dma)
      device.close()
    }
    #expect(machine.isClean)
  }

  @Test func noElementStraddlesAPage() throws {
    try withDomain { dma in
      for count in [1, 5, 170, 171, 1000] {
        // Something in front, so that not everything begins on a page.
        let first = try dma.allocate(UInt8.self, count: 100)
        let array = try dma.allocate(Triple.self, count: count)
        let isGood = isWhole(array, 4096)
        #expect(isGood, "\(count) elements")
        #expect(array.stride == (count <= 170 ? 24 : 32))
        #expect(array.address.rawValue % 64 == 0 && first.count == 100)
      }
    }
  }

  @Test(arguments: [6, 9, 12, 13, 14, 16, 22], [0, 3, 7, 13, 16])
  func noElementStraddlesTheBoundary(_ boundary: UInt8, _ alignment: UInt8) throws {
    guard alignment <= boundary else { return }
    try withDomain { dma in
      let size = PageSize(shift: boundary)
      try dma.setConstraints(DMAConstraints(boundary: size, alignment: PageSize(shift: alignment)))
      for count in [1, 3, 100, 700] {
        let first = try dma.allocate(UInt8.self, count: 1)
        let array = try dma.allocate(Triple.self, count: count)
        let isGood = isWhole(array, size.byteCount) && isWhole(array, 4096)
        #expect(isGood, "\(count) elements")
        for index in 0..<count {
          let start = array.address(of: index).rawValue
          #expect(start % (1 << UInt64(alignment)) == 0)
        }
        let start = array.address.rawValue, end = start + UInt64(array.byteCount)
        if array.byteCount <= size.byteCount { #expect(start / size.byteCount == (end - 1) / size.byteCount) }
        unsafe #expect(dma.translate(array.address, byteCount: array.byteCount) == array.unsafeBaseAddress)
        #expect(first.count == 1)
        guard boundary >= 13 else {
          let error = #expect(throws: DMAError.self) { _ = try dma.allocate(Large.self, count: count) }
          #expect(error?.code == .invalidArgument && error?.device == "0000:00:02.0")
          continue
        }
        if count > 3 { continue }
        let large = try dma.allocate(Large.self, count: count)
        let isAligned = (0..<count).allSatisfy { large.address(of: $0).rawValue % (1 << UInt64(alignment)) == 0 }
        let isLargeGood = isWhole(large, size.byteCount)
        #expect(isAligned && isLargeGood)
      }
    }
  }

  /// Arrays that are freed are used again, wherever the chunk lies for the device.
  @Test func memoryIsUsedAgain() throws {
    try withDomain { dma in
      var first: UInt64?
      for _ in 0..<100 {
        let array = try dma.allocate(UInt64.self, count: 4096)
        #expect(array.address.rawValue == first ?? array.address.rawValue)
        first = array.address.rawValue
      }
      #expect(dma.statistics.arenaAreas == 1)
    }
  }
}
