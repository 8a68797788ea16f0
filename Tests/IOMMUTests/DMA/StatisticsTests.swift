import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Counters while kernel calls fail, and as another thread sees them meanwhile.
@Suite struct StatisticsTests {
  private static let address = "0000:00:02.0"

  private func withDomain(_ interface: Interface, _ body: (FaultingKernel, DMADomain) throws -> Void) throws {
    let machine = SimulatedHost(devices: [Self.address: EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device(Self.address, on: Host(kernel: kernel), interface: interface, translation: .kernel)
      try body(kernel, device.dma)
      device.close()
    }
    #expect(machine.isClean)
  }

  private static func mapCall(_ interface: Interface) -> String { interface == .iommufd ? "ioasMap" : "vfioMap" }

  /// A map that fails counts as that, and its address is the next one's.
  @Test(arguments: Interface.allCases, [nil, IOVA(0x10_0000)])
  func aMapThatFailsIsTakenBack(_ interface: Interface, _ fixed: IOVA?) throws {
    try withDomain(interface) { kernel, dma in
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
      defer { unsafe page.deallocate() }
      let memory = UnsafeRawBufferPointer(page)
      let first = try unsafe dma.map(unsafe: memory, .toDevice, at: fixed), address = first.address
      try first.unmap()
      let before = dma.statistics
      kernel.fail(1, of: Self.mapCall(interface), with: .noDevice)
      #expect(throws: DMAError.self) { _ = try unsafe dma.map(unsafe: memory, .toDevice, at: fixed) }
      var expected = before
      (expected.failedMaps, expected.systemCalls) = (before.failedMaps + 1, before.systemCalls + 1)
      #expect(dma.statistics == expected)
      unsafe #expect(dma.translate(address) == nil)
      let again = try unsafe dma.map(unsafe: memory, .toDevice, at: fixed)
      #expect(again.address == address)
      #expect(dma.statistics.liveMappings == 1 && dma.statistics.liveBytes == 8192)
      try again.unmap()
      #expect(dma.statistics.maps == 2 && dma.statistics.unmaps == 2 && dma.statistics.liveBytes == 0)
    }
  }

  /// What was counted once is never taken back in sight of anybody.
  @Test(arguments: Interface.allCases)
  func countersNeverFall(_ interface: Interface) throws {
    try withDomain(interface) { kernel, dma in
      let seen = Shared(DMAStatistics())
      kernel.interject(before: Self.mapCall(interface)) { [dma] in seen.change { $0 = dma.statistics } }
      kernel.fail(1, of: Self.mapCall(interface), with: .noMemory)
      #expect(throws: DMAError.self) { _ = try dma.map(try dma.buffer(byteCount: 1), .toDevice) }
      #expect(kernel.hasFailed)
      #expect(seen.value.liveMappings == 1 && seen.value.maps == 1, "it was under way")
      #expect(dma.statistics.maps >= seen.value.maps && dma.statistics.systemCalls >= seen.value.systemCalls)
      #expect(dma.statistics.liveMappings == 0)
      _ = try dma.map(try dma.buffer(byteCount: 1), .toDevice).unmap()
      #expect(dma.statistics.maps == 1, "one was made")
    }
  }

  /// The chunk that cannot be mapped in full counts nowhere.
  @Test(arguments: Interface.allCases)
  func anArenaThatFails(_ interface: Interface) throws {
    try withDomain(interface) { kernel, dma in
      kernel.failFrom(1, of: Self.mapCall(interface), with: .noDevice)
      if interface == .iommufd { kernel.failFrom(1, of: "ioasMapFile", with: .noDevice) }
      #expect(throws: DMAError.self) { _ = try dma.allocate(UInt64.self, count: 8) }
      #expect(kernel.hasFailed)
      kernel.passAll()
      #expect(dma.statistics.coherentArenaBytes == 0 && dma.statistics.arenaAreas == 0)
      let array = try dma.allocate(UInt64.self, count: 8)
      #expect(array.count == 8 && dma.statistics.coherentArenaBytes == dma.statistics.arenaBytes)
    }
  }
}
