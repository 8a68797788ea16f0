import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Records of mappings, and the mistakes that they bring to light.
@Suite struct DebugTrackerTests {
  /// What the types forbid and a copy of a value by way of memory does all the same.
  @Test(arguments: LazyTests.Tables.allCases)
  func aBufferIsUnmappedTwice(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables)
    let place = UnsafeMutablePointer<Mapping>.allocate(capacity: 1)
    defer { unsafe place.deallocate() }
    unsafe place.initialize(to: try rig.dma.map(try rig.dma.buffer(byteCount: 64), .toDevice))
    let first = unsafe place.move(), second = unsafe place.move()
    let address = first.address
    let buffer = try first.unmap()
    #expect(rig.reports.isEmpty)
    var code: DMAError.Code?
    do { _ = try second.unmap() } catch { code = error.code }
    #expect(code == .notMapped && rig.kinds == [.notMapped])
    let report = try #require(rig.reports.first)
    #expect(report.address == address && report.byteCount == 64 && report.device == LazyTests.address)
    #expect(!report.mappedAt.isEmpty && !report.unmappedAt.isEmpty && !report.foundAt.isEmpty)
    #expect(report.text.contains("unmapped already") && report.text.contains(".toDevice"))
    // The memory has one owner.
    #expect(rig.dma.statistics.unmaps == 1 && rig.dma.statistics.leakedBytes == 0)
    _ = buffer.byteCount
    rig.device.close()
  }

  @Test(arguments: LazyTests.Tables.allCases)
  func memoryOfTheCallersIsUnmappedTwice(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables), pages = Pages(2)
    let place = UnsafeMutablePointer<UnsafeMapping>.allocate(capacity: 1)
    defer { unsafe place.deallocate() }
    unsafe place.initialize(to: try rig.dma.map(unsafe: pages.all, .bidirectional))
    let first = unsafe place.move()
    do {
      let second = unsafe place.move(), third = unsafe place.move()
      try first.unmap()
      // Something else is there by now, which the stale values do not end.
      let other = try unsafe rig.dma.map(unsafe: pages.part(0..<4096), .toDevice)
      var code: DMAError.Code?
      do { try second.unmap() } catch { code = error.code }
      #expect(code == .notMapped)
      let isLeft: Bool
      do { isLeft = try third.unmapBulk() != nil } catch { isLeft = error.code != .notMapped }
      #expect(!isLeft && rig.kinds == [.notMapped, .notMapped])
      #expect(rig.dma.statistics.liveMappings == 1)
      try other.unmap()
    }
    rig.device.close()
  }

  /// Offsets where nothing is linked, or no more; and a part of a link.
  @Test func linksAreUnlinkedWrongly() throws {
    let rig = try DebugRig()
    var reservation = try rig.dma.reserve(byteCount: 8 * 4096)
    try reservation.link(try rig.dma.buffer(byteCount: 8192), at: 4096, .toDevice)
    var code: DMAError.Code?
    do { _ = try reservation.unlink(4096..<8192) } catch { code = error.code }
    #expect(code == .invalidArgument && rig.kinds == [.wrongSize])
    #expect(rig.reports.last?.byteCount == 8192 && rig.reports.last?.mappedAt.isEmpty == false)
    #expect(try Self.count(reservation.unlink(4096..<12288)) == 1 && rig.kinds.count == 1)
    #expect(try Self.count(reservation.unlink(4096..<12288)) == 0)
    #expect(rig.kinds == [.wrongSize, .notMapped] && rig.reports.last?.unmappedAt.isEmpty == false)
    #expect(try Self.count(reservation.unlink(16384..<20480)) == 0)
    #expect(rig.kinds.count == 3 && rig.reports.last?.address == nil, "nothing ever was there")
    #expect(try Self.count(reservation.destroy()) == 0)
    #expect(rig.kinds.count == 3, "destroying what is empty is no mistake")
    rig.device.close()
    #expect(rig.kinds.count == 3)
  }

  private static func count(_ list: consuming ScatterList) -> Int { list.count }

  /// Mappings and registrations that are alive when the domain is closed, each with where it was made.
  @Test(arguments: [true, false])
  func whatIsAliveAtTheClose(_ isClosed: Bool) throws {
    let pages = Pages(4)
    var rig: DebugRig? = try DebugRig(.process)
    let dma = rig!.dma
    let found = rig!.machine
    let buffer = try dma.map(try dma.buffer(byteCount: 100), .fromDevice)
    let ended = try dma.map(try dma.buffer(byteCount: 100), .fromDevice)
    _ = try ended.unmap()
    var list = ScatterList()
    list.append(try dma.buffer(byteCount: 200))
    unsafe list.append(unsafe: pages.part(0..<4096))
    let mapped = try dma.map(list, .toDevice)
    var reservation = try dma.reserve(byteCount: 4096)
    try reservation.link(try dma.buffer(byteCount: 300), at: 0, .toDevice)
    let registration = try unsafe dma.register(unsafe: pages.part(8192..<16384))
    let plain = try unsafe dma.map(unsafe: pages.part(4096..<8192), .toDevice)
    if isClosed { rig!.device.close() }
    if isClosed {
      #expect(
        rig!.kinds == [.aliveAtClose, .aliveAtClose, .aliveAtClose, .aliveAtClose, .aliveAtClose, .registeredAtClose])
      #expect(rig!.reports.map(\.byteCount) == [100, 200, 4096, 300, 4096, 8192])
      #expect(rig!.reports.allSatisfy { !$0.mappedAt.isEmpty && $0.memory != 0 })
      #expect(dma.statistics.debugReports == 6 && dma.debugReports.count == 6)
    }
    // They end as ever.
    _ = try buffer.unmap()
    _ = try mapped.unmap()
    _ = try reservation.destroy()
    try plain.unmap()
    try registration.unregister()
    rig!.device.close()
    #expect(rig!.kinds.count == (isClosed ? 6 : 0))
    rig = nil
    _ = found
  }

  /// Many are told one by one up to a bound; the list of reports has one, too, and the count has none.
  @Test func boundsOfReports() throws {
    let rig = try DebugRig(), pages = Pages(1)
    var boxes: [Box] = []
    for _ in 0..<40 { boxes.append(Box(try unsafe rig.dma.map(unsafe: pages.all, .toDevice))) }
    for _ in 0..<10 {
      pages[0] &+= 1
      #expect(rig.dma.examine().count == 40)
    }
    #expect(rig.dma.debugReports.count == 256 && rig.dma.statistics.debugReports == 400)
    rig.device.close()
    #expect(rig.kinds.dropFirst(400).count == 33 && rig.reports.last?.text.hasPrefix("8 more") == true)
    let options = DebugOptions(guardPages: -1, heldAddresses: .max, frameCount: 1000)
    #expect(options.guardPages == 0 && options.heldAddresses == 1 << 20 && options.frameCount == 64)
    var later = DebugOptions()
    (later.guardPages, later.heldAddresses, later.frameCount) = (-1, .max, .max)
    let other = try DebugRig(.ioas, .vtd, later), inForce = try #require(other.dma.debugOptions)
    #expect(inForce.guardPages == 0 && inForce.heldAddresses == 1 << 20 && inForce.frameCount == 64)
    other.device.close()
  }

  private final class Box {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }

  /// Memory that the device only reads, changed by the CPU, which did not tell.
  @Test func memoryThatTheDeviceReadsIsChanged() throws {
    let rig = try DebugRig(), pages = Pages(2)
    pages[5000] = 1
    var mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice)
    mapping.sync(for: .cpu)
    pages[5000] = 2
    mapping.sync(for: .device)
    pages[5000] = 2
    try mapping.unmap()
    #expect(rig.reports.isEmpty, "changed as it should be, or not at all")
    mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice)
    pages[5000] = 3
    mapping.sync(for: .device)
    try mapping.unmap()
    #expect(rig.reports.isEmpty, "told afterwards")
    mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice)
    pages[5000] = 4
    #expect(rig.dma.examine().map(\.kind) == [.contentsChanged])
    try mapping.unmap()
    #expect(rig.kinds == [.contentsChanged, .contentsChanged])
    #expect(rig.reports.allSatisfy { $0.text.contains("byte 5000") })
    mapping = try unsafe rig.dma.map(unsafe: pages.all, .bidirectional)
    pages[5000] = 5
    try mapping.unmap()
    #expect(rig.kinds.count == 2, "the device may have written")
    mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice)
    mapping.sync(for: .cpu)
    pages[5000] = 6
    try mapping.unmap()
    #expect(rig.kinds.count == 2, "it was the CPU's")
    rig.device.close()
  }

  /// What is kept to compare with is bounded in all, and given back.
  @Test func copiesAreGivenBack() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(frameCount: 0)), pages = Pages(256)
    for _ in 0..<65 { try unsafe rig.dma.map(unsafe: pages.all, .toDevice).unmap() }
    for _ in 0..<65 {
      let mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice)
      mapping.sync(for: .device)
      mapping.sync(for: .cpu)
      try mapping.unmap()
    }
    let mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice)
    pages[1 << 19] = 9
    try mapping.unmap()
    #expect(rig.kinds == [.contentsChanged] && rig.reports.first?.mappedAt.isEmpty == true)
    rig.device.close()
  }

  /// A buffer that the device has a copy of as well: the device does not see the change.
  @Test(arguments: [Protection.strict, .persistent, .bounce])
  func aBufferThatTheDeviceReadsIsChanged(_ protection: Protection) throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(keepsCPUOut: false))
    try rig.dma.switchProtection(to: protection)
    let buffer = try rig.dma.buffer(byteCount: 64), base = StandingRig.memory(of: buffer)
    let mapping = try rig.dma.map(buffer, .toDevice)
    unsafe UnsafeMutablePointer<UInt8>(bitPattern: base + 7)!.pointee ^= 1
    _ = try mapping.unmap()
    #expect(rig.kinds == [.contentsChanged] && rig.reports.first?.text.contains("byte 7") == true)
    rig.device.close()
  }

  /// A map that is kept goes to whoever wants no more than it allows, as without debug mode.
  @Test func aKeptMapIsUsedAgain() throws {
    let rig = try DebugRig(), dma = rig.dma
    try dma.switchProtection(to: .automatic(Caching.options()))
    var buffer = try dma.buffer(byteCount: 4096)
    for direction in [DMADirection.bidirectional, .toDevice, .fromDevice] {
      buffer = try dma.map(buffer, direction).unmap()
    }
    _ = buffer.byteCount
    #expect(dma.statistics.cacheMisses == 1 && dma.statistics.cacheHits == 2 && rig.kernel.count(of: "ioasUnmap") == 0)
    rig.device.close()
  }

  /// A device that writes what it may only read, where the map leaves it more: one map once for all.
  @Test func aDeviceWritesWhatItMayOnlyRead() throws {
    let rig = try DebugRig()
    try rig.dma.switchProtection(to: .persistent)
    var buffer = try rig.dma.buffer(byteCount: 64)
    for offset in 0..<64 { buffer.store(UInt8(offset), at: offset) }
    let mapping = try rig.dma.map(buffer, .toDevice)
    try rig.read(mapping.address + 8)
    try rig.write(mapping.address + 16)
    _ = try mapping.unmap()
    #expect(rig.kinds == [.contentsChanged] && rig.reports.first?.text.contains("byte 16") == true)
    rig.device.close()
  }

  /// Faults are told with the mapping that they belong to.
  @Test(arguments: [SimulatedMachine.IOMMUKind.vtd, .smmuv3])
  func faultsAreMistakes(_ kind: SimulatedMachine.IOMMUKind) throws {
    let rig = try DebugRig(.ioas, kind == .vtd ? .vtd : .smmuv3)
    let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 4096), .toDevice)
    let address = mapping.address
    try rig.write(address + 8)
    _ = rig.dma.faults
    #expect(rig.kinds == [.wrongDirection] && rig.reports.first?.address == address)
    try rig.read(address + 4096)
    #expect(rig.dma.examine().map(\.kind) == [.overrun])
    _ = try mapping.unmap()
    try rig.read(address)
    #expect(rig.dma.examine().map(\.kind) == [.afterUnmap])
    #expect(rig.reports.last?.unmappedAt.isEmpty == false)
    _ = rig.dma.faults
    #expect(rig.kinds.count == 3, "each once")
    rig.device.close()
  }

  /// Memory that begins and ends in mid page is within reach by the page, and so are its faults told.
  @Test(arguments: [SimulatedMachine.IOMMUKind.vtd, .smmuv3])
  func faultsOfAPartOfAPage(_ kind: SimulatedMachine.IOMMUKind) throws {
    let rig = try DebugRig(.ioas, kind == .vtd ? .vtd : .smmuv3), pages = Pages(1)
    let mapping = try unsafe rig.dma.map(unsafe: pages.part(2048..<2080), .toDevice, widening: true)
    let page = IOVA(mapping.address.rawValue - 2048)
    try rig.write(mapping.address)
    try rig.write(page + 4000)
    #expect(rig.dma.examine().map(\.kind) == [.wrongDirection, .wrongDirection])
    try rig.read(page + 4096)
    #expect(rig.dma.examine().map(\.kind) == [.overrun])
    try mapping.unmap()
    try rig.read(page + 4000)
    #expect(rig.dma.examine().map(\.kind) == [.afterUnmap])
    rig.device.close()
  }

  /// Every way to map and unmap goes as without debug mode, and finds nothing.
  @Test(arguments: LazyTests.Tables.allCases)
  func rightUseIsNotReported(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables), dma = rig.dma, pages = Pages(4)
    let protections: [Protection] = [.strict, .lazy(.perCPU), .automatic(.init()), .persistent, .bounce, .strict]
    for protection in protections {
      try dma.switchProtection(to: protection)
      var buffer = try dma.buffer(byteCount: 5000)
      for offset in stride(from: 0, to: 64, by: 8) { buffer.store(UInt64(offset), at: offset) }
      let out = try dma.map(buffer, .toDevice)
      try rig.read(out.address, 64)
      buffer = try out.unmap()
      let back = try dma.map(buffer, .fromDevice)
      try rig.write(back.address + 128, 64)
      buffer = try back.unmap()
      let received = buffer.load(at: 128 + 56, as: UInt64.self)
      #expect(received == 56, "\(protection)")
      // Dropped while it is mapped.
      do { _ = try dma.map(try dma.buffer(byteCount: 64), .bidirectional) }
      var list = ScatterList()
      list.append(buffer)
      unsafe list.append(unsafe: pages.part(0..<8192))
      list = try dma.map(list, .bidirectional).unmap()
      #expect(list.count == 2)
      try unsafe dma.map(unsafe: pages.part(8192..<16384), .fromDevice).unmap()
      try dma.drain()
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0, "\(protection)")
    }
    rig.device.close()
    #expect(rig.reports.isEmpty)
    #expect(rig.machine.faults.isEmpty)
  }

  /// An unmap that is stopped leaves a mapping of which there is a record.
  @Test func whatIsLeftOfAStoppedUnmap() throws {
    let rig = try DebugRig(), count = (64 << 20) + 8192
    let memory = try unsafe rig.machine.kernel.mapMemory(byteCount: count, descriptor: -1, offset: 0)
    let mapping = try unsafe rig.dma.map(unsafe: UnsafeRawBufferPointer(start: memory, count: count), .fromDevice)
    let asked = Shared(0)
    guard
      let rest = try mapping.unmapBulk(isCancelled: {
        asked.change {
          $0 += 1; return $0 > 1
        }
      })
    else {
      Issue.record("nothing stopped it")
      return
    }
    #expect(rest.byteCount < count && rest.byteCount > 0)
    unsafe #expect(rig.dma.describe(memory) == nil && rig.dma.describe(memory + count - 1) != nil)
    try rest.unmap()
    unsafe #expect(rig.dma.describe(memory + count - 1) == nil)
    rig.device.close()
    #expect(rig.reports.isEmpty)
    unsafe rig.machine.kernel.unmapMemory(memory, byteCount: count)
  }

  /// Off unless asked for; by the environment too; and never of a domain that is there.
  @Test func whoHasIt() async throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(), "0000:00:03.0": EduModel()])
    if unsafe getenv("SWIFT_IOMMU_DEBUG") == nil {
      let device = try Device(LazyTests.address, on: machine.host)
      #expect(device.dma.debugOptions == nil && device.dma.debugReports.isEmpty && device.dma.examine().isEmpty)
      unsafe #expect(device.dma.describe(UnsafeRawPointer(bitPattern: 4096)!) == nil)
      let code = DebugRig.code { () throws(DMAError) in
        _ = try Device("0000:00:03.0", on: machine.host, sharing: device.dma, debug: DebugOptions())
      }
      #expect(code == .invalidArgument)
      device.close()
    }
    await #expect(processExitsWith: .success) {
      _ = unsafe setenv("SWIFT_IOMMU_DEBUG", "1", 1)
      let machine = SimulatedHost(devices: [LazyTests.address: EduModel()])
      let device = try Device(LazyTests.address, on: machine.host)
      exit(device.dma.debugOptions?.guardPages == 1 ? 0 : 1)
    }
  }

  /// Where nobody listens, a report is a line.
  @Test func aReportIsALine() async throws {
    let result = await #expect(processExitsWith: .success, observing: [\.standardErrorContent]) {
      let machine = SimulatedHost(devices: [LazyTests.address: EduModel()])
      let device = try Device(LazyTests.address, on: machine.host, debug: DebugOptions())
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
      device.close()
      _ = try mapping.unmap()
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(text.contains("iommu debug: 0000:00:02.0: aliveAtClose: the buffer of 64 bytes at 0x"))
    #expect(text.split(separator: "\n").filter { $0.contains("iommu debug") }.count == 1)
  }
}
