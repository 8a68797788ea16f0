import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Memory of many areas: in slices, on several threads, stopped half way.
@Suite struct BulkTests {
  private static let area = 32 << 20

  /// Four areas and a page, which nobody touches: the simulated kernel only counts them.
  private func withMemory(
    _ interface: Interface, _ body: (FaultingKernel, DMADomain, UnsafeRawBufferPointer) throws -> Void
  ) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
      let length = 4 * Self.area + 4096
      let base = unsafe try kernel.mapMemory(byteCount: length, descriptor: -1, offset: 0)
      try unsafe body(kernel, device.dma, UnsafeRawBufferPointer(start: base, count: length))
      device.close()
      unsafe kernel.unmapMemory(base, byteCount: length)
    }
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }

  private static func calls(_ kernel: FaultingKernel, _ interface: Interface) -> (maps: Int, unmaps: Int) {
    interface == .iommufd
      ? (kernel.count(of: "ioasMap"), kernel.count(of: "ioasUnmap"))
      : (kernel.count(of: "vfioMap"), kernel.count(of: "vfioUnmap"))
  }

  @Test(arguments: Interface.allCases, [1, 3, 100])
  func oneCallAnArea(_ interface: Interface, _ threads: Int) throws {
    try unsafe withMemory(interface) { kernel, dma, memory in
      guard let mapping = try unsafe dma.mapBulk(unsafe: memory, .toDevice, threads: threads) else {
        throw DMAError(.system, "nothing was mapped")
      }
      #expect(Self.calls(kernel, interface).maps == 5 && mapping.byteCount == memory.count)
      #expect(dma.statistics.maps == 1 && dma.statistics.systemCalls == 5)
      #expect(dma.statistics.liveBytes == UInt64(memory.count))
      let base = UInt(bitPattern: memory.baseAddress)
      let found = unsafe UInt(bitPattern: dma.translate(mapping.address, byteCount: memory.count))
      #expect(found == base)
      unsafe #expect(dma.translate(memory.baseAddress!, byteCount: memory.count) == mapping.address)
      guard try mapping.unmapBulk(threads: threads) == nil else {
        Issue.record("something is left")
        return
      }
      #expect(Self.calls(kernel, interface).unmaps == 5)
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.liveBytes == 0 && dma.statistics.systemCalls == 10)
      unsafe #expect(dma.translate(memory.baseAddress!) == nil)
    }
  }

  /// The ordinary calls keep to areas too.
  @Test(arguments: Interface.allCases, [nil, IOVA(0x4000_0000)])
  func noCallIsLongerThanAnArea(_ interface: Interface, _ address: IOVA?) throws {
    try unsafe withMemory(interface) { kernel, dma, memory in
      let mapping = try unsafe dma.map(unsafe: memory, .toDevice, at: address)
      #expect(address == nil || mapping.address == address)
      try mapping.unmap()
      _ = try unsafe dma.map(unsafe: memory, .toDevice)
      let calls = Self.calls(kernel, interface)
      #expect(calls.maps == 10 && calls.unmaps == 10)
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0)
    }
  }

  /// Whose the page tables are, and on a VT-d whether the process writes them in its format.
  private static let owners: [(LazyTests.Tables, isVTd: Bool)] = [
    (.ioas, false), (.container, false), (.process, false), (.smmu, false), (.process, true),
  ]

  /// As much as an area that begins in mid page has a page more: it is cut in the same places when it is mapped and unmapped.
  @Test(arguments: owners, [nil, IOVA(0x4000_0000)])
  func anAreaThatBeginsInMidPage(_ owner: (LazyTests.Tables, isVTd: Bool), _ address: IOVA?) throws {
    let rig = try StandingRig(owner.0, owner.isVTd ? .vtdNested : nil), dma = rig.dma
    let length = Self.area + 4096, base = unsafe try rig.kernel.mapMemory(byteCount: length, descriptor: -1, offset: 0)
    defer { unsafe rig.kernel.unmapMemory(base, byteCount: length) }
    let memory = unsafe UnsafeRawBufferPointer(start: base + 16, count: Self.area)
    let before = rig.machine.kernel.census.pinnedBytes - dma.statistics.tableBytes
    for _ in 0..<2 {
      let mapping = try unsafe dma.map(unsafe: memory, .bidirectional, at: address, widening: true)
      let start = mapping.address, end = start + (Self.area - 8)
      #expect(mapping.byteCount == Self.area && start.rawValue & 4095 == 16)
      #expect(address == nil || start == address! + 16)
      #expect(try rig.writes(start) && rig.writes(end))
      try mapping.unmap()
      #expect(try !rig.writes(start) && !rig.writes(end))
      #expect(rig.machine.kernel.census.pinnedBytes - dma.statistics.tableBytes == before)
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0)
    }
    rig.device.close()
  }

  /// What is mapped when somebody stops it comes back, and can be gone on with.
  @Test(arguments: Interface.allCases, [0, 1, 2, 4])
  func stoppedHalfWay(_ interface: Interface, _ areas: Int) throws {
    try unsafe withMemory(interface) { kernel, dma, memory in
      let asked = Shared(0)
      let isCancelled: @Sendable () -> Bool = {
        asked.change { count in
          count += 1
          return count > areas
        }
      }
      var stopped = try unsafe dma.mapBulk(unsafe: memory, .toDevice, isCancelled: isCancelled)
      guard let part = stopped.take() else {
        #expect(areas == 0 && dma.statistics.liveMappings == 0)
        return
      }
      #expect(part.byteCount == areas * Self.area && dma.statistics.liveBytes == UInt64(part.byteCount))
      unsafe #expect(dma.translate(memory.baseAddress! + part.byteCount - 1) != nil)
      unsafe #expect(dma.translate(memory.baseAddress! + part.byteCount) == nil)
      try part.unmap()
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.liveBytes == 0)

      let whole = try unsafe dma.map(unsafe: memory, .toDevice), start = whole.address.rawValue
      asked.change { $0 = 0 }
      guard let rest = try whole.unmapBulk(isCancelled: isCancelled) else {
        Issue.record("it went to the end")
        return
      }
      let gone = areas * Self.area
      #expect(rest.address.rawValue == start + UInt64(gone) && rest.byteCount == memory.count - gone)
      #expect(dma.statistics.liveMappings == 1 && dma.statistics.liveBytes == UInt64(rest.byteCount))
      unsafe #expect(dma.translate(IOVA(start + UInt64(gone - 1))) == nil)
      let found = unsafe UInt(bitPattern: dma.translate(rest.address, byteCount: rest.byteCount))
      #expect(found == UInt(bitPattern: memory.baseAddress) + UInt(gone))
      unsafe #expect(dma.translate(memory.baseAddress! + gone) == rest.address)
      // The addresses before it are free.
      let page = unsafe UnsafeRawBufferPointer(rebasing: memory[0..<4096])
      try unsafe dma.map(unsafe: page, .toDevice, at: IOVA(start)).unmap()
      guard try rest.unmapBulk() == nil else {
        Issue.record("something is left")
        return
      }
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.liveBytes == 0 && dma.statistics.leakedBytes == 0)
    }
  }

  /// Whichever area fails: nothing stays mapped.
  @Test(arguments: Interface.allCases, [1, 3, 5])
  func aMapThatFails(_ interface: Interface, _ number: Int) throws {
    try unsafe withMemory(interface) { kernel, dma, memory in
      for threads in [1, 4] {
        kernel.fail(number, of: interface == .iommufd ? "ioasMap" : "vfioMap", with: .noMemory)
        let error = #expect(throws: DMAError.self) {
          _ = try unsafe dma.mapBulk(unsafe: memory, .toDevice, at: IOVA(0x4000_0000), threads: threads)
        }
        #expect(error?.errno == .noMemory && error?.operation == "map(unsafe:)" && error?.device == "0000:00:02.0")
        #expect(dma.statistics.liveMappings == 0 && dma.statistics.maps == 0 && dma.statistics.leakedBytes == 0)
        unsafe #expect(dma.translate(memory.baseAddress!) == nil)
      }
      #expect(dma.statistics.failedMaps == 2)
      try unsafe dma.map(unsafe: memory, .toDevice, at: IOVA(0x4000_0000)).unmap()
    }
  }

  /// What could not be unmapped keeps its addresses.
  @Test(arguments: Interface.allCases)
  func anUnmapThatFails(_ interface: Interface) throws {
    try unsafe withMemory(interface) { kernel, dma, memory in
      let mapping = try unsafe dma.map(unsafe: memory, .toDevice), address = mapping.address
      kernel.fail(2, of: interface == .iommufd ? "ioasUnmap" : "vfioUnmap", with: .inputOutput)
      do throws(DMAError) {
        try mapping.unmap()
        Issue.record("unmapped")
      } catch { #expect(error.errno == .inputOutput && error.remedy != nil) }
      #expect(dma.statistics.leakedBytes == UInt64(memory.count - Self.area) && dma.statistics.liveMappings == 1)
      let page = unsafe UnsafeRawBufferPointer(rebasing: memory[0..<4096])
      let overlap = #expect(throws: DMAError.self) { _ = try unsafe dma.map(unsafe: page, .toDevice, at: address) }
      #expect(overlap?.code == .overlap)
    }
  }
}
