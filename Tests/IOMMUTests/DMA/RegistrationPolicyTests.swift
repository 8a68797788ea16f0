import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Memory that nobody registered, where it has to be: refused, wherever it comes in.
@Suite struct RegistrationPolicyTests {
  /// Tables of the process in each format that there is.
  enum Format: CaseIterable {
    case flat, smmu, vtd

    func rig() throws -> StandingRig {
      switch self {
      case .flat: try StandingRig(.process)
      case .smmu: try StandingRig(.smmu)
      case .vtd: try StandingRig(.process, .vtdNested)
      }
    }
  }

  /// The ways in which memory of the caller's is mapped; each ends what it has begun.
  private enum Way: CaseIterable {
    case single, fixed, bulk, list, link

    func map(_ memory: UnsafeRawBufferPointer, _ dma: DMADomain) throws(DMAError) {
      switch self {
      case .single: try unsafe dma.map(unsafe: memory, .toDevice).unmap()
      case .fixed: try unsafe dma.map(unsafe: memory, .toDevice, at: IOVA(0x40_0000)).unmap()
      case .bulk:
        let mapping = try unsafe dma.mapBulk(unsafe: memory, .toDevice, threads: 2)
        guard let mapping else { return }
        _ = try mapping.unmapBulk(threads: 2)
      case .list:
        var list = ScatterList()
        list.append(try dma.buffer(byteCount: 4096))
        unsafe list.append(unsafe: memory)
        _ = try dma.map(list, .toDevice).unmap()
      case .link:
        var reservation = try dma.reserve(byteCount: memory.count + 4096)
        try reservation.link(try dma.buffer(byteCount: 4096), at: 0, .toDevice)
        try unsafe reservation.link(unsafe: memory, at: 4096, .toDevice)
        _ = try reservation.destroy()
      }
    }
  }

  /// Nothing is pinned, entered or counted, the addresses are free, and the same goes once the memory is registered.
  @Test(arguments: Format.allCases)
  func refusedWhereverItComesIn(_ format: Format) throws {
    let rig = try format.rig(), dma = rig.dma, pages = Pages(4)
    #expect(dma.registrationPolicy == .implicit)
    for way in Way.allCases { try unsafe way.map(pages.all, dma) }  // the arena has grown, and tables are there
    let before = dma.statistics, pinned = rig.machine.kernel.census.pinnedBytes
    #expect(before.implicitRegistrations == UInt64(Way.allCases.count))
    dma.setRegistrationPolicy(.requireRegistered)
    #expect(dma.registrationPolicy == .requireRegistered)
    rig.kernel.resetCounts()
    for way in Way.allCases {
      do throws(DMAError) {
        try unsafe way.map(pages.all, dma)
        Issue.record("\(way): mapped")
      } catch {
        #expect(error.code == .notRegistered && error.errno == nil && error.device == LazyTests.address, "\(way)")
        #expect(error.remedy?.contains("register(unsafe:)") == true && error.detail != nil)
      }
    }
    #expect(rig.kernel.count(of: "ioasMap") == 0 && rig.kernel.count(of: "ioasUnmap") == 0)
    #expect(rig.machine.kernel.census.pinnedBytes == pinned)
    let after = dma.statistics
    #expect(after.implicitRegistrations == before.implicitRegistrations && after.leakedBytes == 0)
    #expect(after.liveMappings == 0 && after.liveBytes == 0 && after.failedMaps == UInt64(Way.allCases.count))
    #expect(dma.checkAddresses() == nil)
    let registration = try unsafe dma.register(unsafe: pages.all)
    for way in Way.allCases { try unsafe way.map(pages.all, dma) }
    #expect(dma.statistics.implicitRegistrations == before.implicitRegistrations)
    try registration.unregister()
    #expect(StandingRig.code { try unsafe Way.single.map(pages.all, dma) } == .notRegistered, "found no more")
    dma.setRegistrationPolicy(.implicit)
    for way in Way.allCases { try unsafe way.map(pages.all, dma) }
    #expect(dma.statistics.implicitRegistrations == before.implicitRegistrations * 2)
    rig.device.close()
  }

  /// The library's own memory is registered, whatever the protection; and what is copied need not be.
  @Test(arguments: Format.allCases)
  func memoryOfTheLibrary(_ format: Format) throws {
    let rig = try format.rig(), dma = rig.dma, pages = Pages(4)
    dma.setRegistrationPolicy(.requireRegistered)
    let array = try dma.allocate(UInt64.self, count: 512)
    #expect(try rig.writes(array.address))
    for protection in [Protection.strict, .lazy(.perCPU), .persistent, .automatic, .bounce] {
      try dma.switchProtection(to: protection)
      _ = try dma.map(try dma.buffer(byteCount: 3 << 20), .toDevice).unmap()
      var list = ScatterList()
      for _ in 0..<64 { list.append(try dma.buffer(byteCount: 4096)) }
      let mapped = try dma.map(list, .bidirectional)
      #expect(try rig.writes(mapped.address(ofBufferAt: 63)))
      _ = try mapped.unmap()
      let code = StandingRig.code { try unsafe dma.map(unsafe: pages.all, .toDevice).unmap() }
      #expect(code == (protection == .bounce ? nil : .notRegistered), "\(protection)")
    }
    #expect(dma.statistics.implicitRegistrations == 0 && dma.statistics.leakedBytes == 0)
    rig.device.close()
  }

  /// Neighbours in a list go by one map where one registration has them, and each by itself where they are in several.
  @Test(arguments: Format.allCases)
  func neighboursOfSeveralRegistrations(_ format: Format) throws {
    let rig = try format.rig(), dma = rig.dma, pages = Pages(4)
    let first = try unsafe dma.register(unsafe: pages.part(0..<4096))
    let second = try unsafe dma.register(unsafe: pages.part(4096..<12288))
    dma.setRegistrationPolicy(.requireRegistered)
    func list(_ count: Int) -> ScatterList {
      var list = ScatterList()
      for page in 0..<count { unsafe list.append(unsafe: pages.part(page * 4096..<(page + 1) * 4096)) }
      return list
    }
    let mapped = try dma.map(list(3), .bidirectional)
    for page in 0..<3 { #expect(try rig.writes(mapped.address(ofBufferAt: page) + 8)) }
    let end = mapped.address(ofBufferAt: 2)
    _ = try mapped.unmap()
    #expect(try !rig.writes(end))
    // One part that is not registered: those before it are taken back.
    let before = dma.statistics
    #expect(StandingRig.code { _ = try dma.map(list(4), .bidirectional).unmap() } == .notRegistered)
    #expect(dma.statistics.leakedBytes == 0 && dma.statistics.liveMappings == 0)
    #expect(dma.statistics.failedMaps == before.failedMaps + 1 && dma.checkAddresses() == nil)
    #expect(StandingRig.code { try unsafe dma.map(unsafe: pages.part(0..<8192), .toDevice).unmap() } == .notRegistered)
    #expect(dma.statistics.implicitRegistrations == 0)
    try first.unregister()
    try second.unregister()
    rig.device.close()
  }

  /// What is timed for ``AutomaticOptions/copiesShortMemory`` is registered for as long, and let go of.
  @Test(arguments: Format.allCases)
  func timingCopies(_ format: Format) throws {
    var options = AutomaticOptions()
    (options.copiesShortMemory, options.isInvalidationDear) = (true, false)
    let rig = try format.rig(), dma = rig.dma, pages = Pages(600)
    dma.setRegistrationPolicy(.requireRegistered)
    try dma.switchProtection(to: .automatic(options))
    #expect(dma.copiedByteCount(.toDevice) == 1 << 20 && dma.statistics.implicitRegistrations == 0)
    #expect(rig.machine.kernel.census.pinnedBytes == dma.statistics.coherentArenaBytes + dma.statistics.tableBytes)
    try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice).unmap()
    #expect(StandingRig.code { try unsafe dma.map(unsafe: pages.all, .toDevice).unmap() } == .notRegistered)
    #expect(dma.statistics.leakedBytes == 0)
    // What the kernel does not let go of stays in place, and is counted.
    try dma.switchProtection(to: .strict)
    rig.kernel.failFrom(1, of: "ioasUnmap", with: .inputOutput)
    try dma.switchProtection(to: .automatic(options))
    #expect(dma.statistics.leakedBytes == 1 << 20)
    rig.kernel.passAll()
    try dma.switchProtection(to: .strict)
    rig.kernel.fail(1, of: "ioasMap", with: .inputOutput)
    #expect(StandingRig.code { try dma.switchProtection(to: .automatic(options)) } == .system)
    rig.device.close()
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
  }

  /// The kernel pins with every map of its own tables: there is nothing to refuse.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func onTablesOfTheKernel(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables), dma = rig.dma, pages = Pages(4)
    dma.setRegistrationPolicy(.requireRegistered)
    #expect(dma.registrationPolicy == .implicit)
    for way in Way.allCases { try unsafe way.map(pages.all, dma) }
    #expect(dma.statistics.implicitRegistrations == 0)
    rig.device.close()
  }

  /// All devices of a domain have one policy.
  @Test func sharedByDevices() throws {
    let machine = SimulatedHost(
      .smmuv3Nested, devices: ["0000:00:02.0": ScratchModel(), "0000:00:03.0": ScratchModel()])
    let pages = Pages(1)
    do {
      let first = try Device("0000:00:02.0", on: machine.host)
      let second = try Device("0000:00:03.0", on: machine.host, sharing: first.dma)
      second.dma.setRegistrationPolicy(.requireRegistered)
      #expect(first.dma.registrationPolicy == .requireRegistered)
      #expect(StandingRig.code { try unsafe first.dma.map(unsafe: pages.all, .toDevice).unmap() } == .notRegistered)
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }
}
