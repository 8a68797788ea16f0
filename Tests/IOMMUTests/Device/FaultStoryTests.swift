import AddressSpace
import CIOMMU
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// What a fault's address has to do with the mappings, whatever tells of the fault.
@Suite struct FaultStoryTests {
  /// A machine, and whose the page tables are; the simulated kernel's log, or the event queue of a nested SMMUv3.
  struct Way: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let machine: SimulatedMachine
    var tables = LazyTests.Tables.ioas
    var source: Fault.Source { testDescription == "smmuv3 nested" ? .eventQueue : .kernelLog }
    /// Whether the address is told to the byte; else that of the page is.
    var isExact: Bool { machine.iommu == .smmuv3 }

    func rig(_ options: DebugOptions? = nil) throws -> Rig { try Rig(self, options) }
  }

  static let ways = [
    Way(testDescription: "vtd", machine: .vtd), Way(testDescription: "vtd type1", machine: .vtd, tables: .container),
    Way(testDescription: "vtd scalable", machine: .vtdScalable),
    Way(testDescription: "vtd first stage", machine: .vtdFirstStage),
    Way(testDescription: "vtd flat", machine: .vtd, tables: .process),
    Way(testDescription: "smmuv3", machine: .smmuv3),
    Way(testDescription: "smmuv3 type1", machine: .smmuv3, tables: .container),
    Way(testDescription: "vtd nested", machine: .vtdNested, tables: .process),
    Way(testDescription: "smmuv3 nested", machine: .smmuv3Nested, tables: .process),
  ]

  /// A device, and the story of what it does.
  struct Rig {
    let machine: SimulatedHost
    let device: Device
    let bar: Registers
    var dma: DMADomain { device.dma }

    init(_ way: Way, _ options: DebugOptions?) throws {
      machine = SimulatedHost(way.machine, devices: [LazyTests.address: EduModel(addressBits: 64)])
      device = try Device(
        LazyTests.address, on: machine.host, interface: way.tables.interface, translation: way.tables.choice,
        debug: options)
      bar = try device.registers(bar: 0)
    }

    /// The fault that a transfer makes last.
    func fault(_ address: IOVA, writes: Bool) throws -> Fault {
      let before = dma.faults.count
      try EndToEndTests.transfer(bar, address, 8, toDevice: !writes)
      let report = dma.faults
      #expect(report.count > before, "no fault")
      return try #require(report.faults.last { $0.iova.map { $0.rawValue >> 12 } == address.rawValue >> 12 })
    }

    func write(_ address: IOVA) throws -> Fault.Story { try #require(try fault(address, writes: true).story) }
    func read(_ address: IOVA) throws -> Fault.Story { try #require(try fault(address, writes: false).story) }
  }

  private static var isDebugged: Bool { unsafe getenv("SWIFT_IOMMU_DEBUG") != nil }
  static let quiet = DebugOptions(onReport: { _ in })

  /// Without debug mode: each place, by the tables that the domain has anyway.
  @Test(arguments: ways) func places(_ way: Way) throws {
    if Self.isDebugged { return }
    let rig = try way.rig(), pages = Pages(2), start = IOVA(0x1000_0000)
    let range = IOVARange(start: start, byteCount: 8192)!
    let mapping = try unsafe rig.dma.map(unsafe: pages.all, .toDevice, at: start)
    let fault = try rig.fault(start + 0x40, writes: true), live = try #require(fault.story)
    #expect(fault.source == way.source && fault.stage == (way.isExact ? 1 : fault.stage))
    #expect(live.place == .live && live.mapping?.range == range && live.mapping?.memory == UInt(pages.address))
    #expect(live.offset == (way.isExact ? 0x40 : 0) && live.neighbour == nil && live.mapping?.end == nil)
    #expect(live.mapping?.direction == nil && live.mapping?.mappedAgo == nil && live.mapping?.thread == nil)
    #expect(live.description.contains("a write to 0x100000\(way.isExact ? "40" : "00"): byte "), "\(live)")
    let words = " of the mapping of 8192 bytes at 0x10000000, which does not let the device write"
    #expect(live.description.contains(words))

    let behind = try rig.write(start + 0x2010)
    #expect(behind.place == .beside && behind.mapping == nil && behind.neighbour?.range == range)
    #expect(behind.distance == (way.isExact ? 16 : 0))
    let place = way.isExact ? "16 bytes past the end of" : "right behind the end of"
    #expect(behind.description.hasSuffix("nothing is mapped there, \(place) the mapping of 8192 bytes at 0x10000000"))
    let before = try rig.read(start - 16)
    #expect(before.place == .beside && before.distance == (way.isExact ? -16 : -4096))
    #expect(before.description.contains("bytes before the start of the mapping"))
    let far = try rig.read(IOVA(0x4000_0000))
    #expect(far.place == .nowhere && far.neighbour?.range == range && far.description.contains("remembered"))
    let null = try rig.read(IOVA(0x10))
    #expect(null.place == .unusable && null.neighbour == nil && null.description.contains("page 0"))

    try mapping.unmap()
    let ended = try rig.read(start + 0x1008)
    #expect(ended.place == .ended && ended.mapping?.range == range && ended.mapping?.end == .unmapped)
    #expect(ended.offset == (way.isExact ? 0x1008 : 0x1000) && ended.mapping?.endedAgo == nil)
    #expect(ended.description.hasSuffix("of the mapping of 8192 bytes at 0x10000000, which was unmapped"), "\(ended)")
    rig.device.close()
  }

  /// Told after the unmap, a write that was refused before it: without debug mode nobody remembers what was allowed.
  @Test(arguments: ways) func refusedWhileMapped(_ way: Way) throws {
    if Self.isDebugged { return }
    let rig = try way.rig(), mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 64), .toDevice)
    let address = mapping.address
    _ = rig.dma.faults
    try EndToEndTests.transfer(rig.bar, address, 8, toDevice: false)
    _ = try mapping.unmap()
    let fault = try #require(rig.dma.faults.faults.last), story = try #require(fault.story)
    // A VT-d gives one reason for what is not there and for what may not be written.
    let isTold = fault.kind == .permission, ending = "; or it was not, and did not let the device write"
    #expect(story.place == .ended && (isTold || !way.isExact))
    #expect(story.description.hasSuffix(", which was unmapped\(isTold ? ending : "")"), "\(story)")
    rig.device.close()
  }

  /// Mappings at addresses of the library's choice, which have a table of their own.
  @Test(arguments: ways) func buffers(_ way: Way) throws {
    if Self.isDebugged { return }
    let rig = try way.rig()
    let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 5000), .toDevice), start = mapping.address
    let range = IOVARange(start: start, byteCount: 8192)!
    let live = try rig.write(start + 4096)
    #expect(live.place == .live && live.mapping?.range == range && live.offset == 4096)
    let memory = unsafe rig.dma.translate(start).map { UInt(bitPattern: $0) }
    #expect(live.mapping?.memory == memory && memory != nil)
    _ = try mapping.unmap()
    let ended = try rig.read(start)
    #expect(ended.place == .ended && ended.mapping?.range == range && ended.offset == 0)
    rig.device.close()
  }

  /// In debug mode: who made it, when, in which direction, and how it ended.
  @Test(arguments: ways) func makers(_ way: Way) throws {
    let rig = try way.rig(Self.quiet)
    let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 4000), .toDevice), start = mapping.address
    rig.machine.kernel.sleep(.milliseconds(7))
    let live = try rig.write(start + 0x40)
    let made = try #require(live.mapping)
    #expect(live.place == .live && made.range == IOVARange(start: start, byteCount: 4000)!)
    #expect(made.what == "buffer" && made.direction == .toDevice && made.thread == ci_gettid())
    #expect(!made.mappedAt.isEmpty)
    #expect(made.mappedAgo.map { $0 >= .milliseconds(7) && $0 < .seconds(100) } == true)
    let buffer = "the buffer of 4000 bytes at \(start), .toDevice"
    #expect(live.description.contains("of \(buffer), which lets a device read only. "))
    #expect(live.description.contains("It was mapped by thread \(ci_gettid()) "), "\(live)")

    let gap = try rig.write(start + 4096 + 16)
    #expect(gap.place == .gap && gap.mapping == nil && gap.neighbour?.range == made.range)
    #expect(gap.distance == (way.isExact ? 112 : 96) && gap.neighbour?.thread == ci_gettid())
    let distance = "\(way.isExact ? 112 : 96) bytes past the end of \(buffer)"
    #expect(gap.description.contains("in a gap that is kept free, \(distance)"))

    _ = try mapping.unmap()
    rig.machine.kernel.sleep(.milliseconds(3))
    let ended = try rig.write(start + 8), gone = try #require(ended.mapping)
    #expect(ended.place == .ended && gone.range == made.range && gone.end == .unmapped && !gone.unmappedAt.isEmpty)
    #expect(gone.endedAgo.map { $0 >= .milliseconds(3) } == true && gone.mappedAgo! > gone.endedAgo!)
    #expect(ended.description.contains("nor did it ever let the device write"))
    #expect(ended.description.contains("; unmapped at "))
    #expect(try rig.read(start + 8).description.contains("ever") == false)
    rig.device.close()
  }

  /// A gap behind a mapping is told as that, where another mapping was before.
  @Test func aGapWhereAMappingWas() throws {
    let rig = try Self.ways[5].rig(DebugOptions(heldAddresses: 0, onReport: { _ in }))
    let former = try rig.dma.map(try rig.dma.buffer(byteCount: 4 * 4096), .bidirectional)
    let range = IOVARange(start: former.address, byteCount: 4 * 4096)!
    _ = try former.unmap()
    #expect(try rig.write(range.start + 4096).place == .ended)
    var live: [Box] = []
    repeat {
      live.append(Box(try rig.dma.map(try rig.dma.buffer(byteCount: 4096), .bidirectional)))
    } while !range.contains(live.last!.end) && live.count < 16
    let last = try #require(live.last), story = try rig.write(last.end)
    #expect(range.contains(last.end) && story.place == .gap && story.neighbour?.range.start == last.end - 4096)
    rig.device.close()
  }

  private final class Box {
    let mapping: Mapping
    var end: IOVA { mapping.address + 4096 }
    init(_ mapping: consuming Mapping) { self.mapping = mapping }
  }

  /// In a lazy mode: what waits for a flush, and what was flushed.
  @Test(arguments: [true, false]) func flushes(_ isDebugged: Bool) throws {
    if !isDebugged, Self.isDebugged { return }
    for way in Self.ways where way.tables == .process {
      let rig = try way.rig(isDebugged ? Self.quiet : nil), dma = rig.dma
      try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, depth: 64, timeout: LazyTests.patient)))
      let first = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional), start = first.address
      let later = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional)
      _ = try first.unmap()
      // Others are queued behind it.
      for _ in 0..<20 { _ = try dma.map(try dma.buffer(byteCount: 64), .bidirectional).unmap() }
      rig.machine.kernel.sleep(.milliseconds(30))
      let waiting = try rig.write(start + 8)
      #expect(waiting.place == .ended && waiting.mapping?.end == .queued, "\(way): \(waiting)")
      #expect(waiting.mapping?.range.start == start && waiting.mapping!.endedAgo! >= .milliseconds(20))
      #expect(waiting.description.contains("waits for a flush"))
      try dma.drain()
      let flushed = try rig.write(start + 8)
      #expect(flushed.place == .ended && flushed.mapping?.end == (isDebugged ? .flushed : .unmapped), "\(flushed)")
      _ = try later.unmap()
      rig.device.close()
    }
  }

  /// Where two answers are possible both are told: a mapping that ended, right behind one that is live.
  @Test func aLiveNeighbour() throws {
    let rig = try Self.ways[5].rig(), pages = Pages(2), start = IOVA(0x1000_0000)
    let first = try unsafe rig.dma.map(unsafe: pages.part(0..<4096), .bidirectional, at: start)
    let second = try unsafe rig.dma.map(unsafe: pages.part(4096..<8192), .bidirectional, at: start + 4096)
    try second.unmap()
    let story = try rig.write(start + 4096 + 8)
    #expect(story.place == .ended && story.mapping?.range.start == start + 4096)
    #expect(story.neighbour?.range.start == start)
    #expect(story.description.contains("; also 8 bytes past the end of the "))
    try first.unmap()
    #expect(try rig.write(start + 4096 + 8).description.contains("also") == false)
    rig.device.close()
  }

  /// Of two live mappings the nearer one is told, with how far in front of it the address is.
  @Test func theNearerNeighbour() throws {
    let rig = try Self.ways[5].rig(), pages = Pages(2), start = IOVA(0x1000_0000)
    let below = try unsafe rig.dma.map(unsafe: pages.part(0..<4096), .bidirectional, at: start)
    let above = try unsafe rig.dma.map(unsafe: pages.part(4096..<8192), .bidirectional, at: start + 0x8000)
    let low = try rig.write(start + 0x2000), high = try rig.write(start + 0x7000)
    #expect(low.neighbour?.range.start == start && low.distance == 0x1000)
    #expect(high.neighbour?.range.start == start + 0x8000 && high.distance == -0x1000)
    try below.unmap()
    try above.unmap()
    rig.device.close()
  }

  /// The part of a reservation that holds no link; and a link that was there.
  @Test(arguments: [true, false]) func reservations(_ isDebugged: Bool) throws {
    if !isDebugged, Self.isDebugged { return }
    let rig = try Self.ways[5].rig(isDebugged ? Self.quiet : nil)
    var reservation = try rig.dma.reserve(byteCount: 8 * 4096)
    try reservation.link(try rig.dma.buffer(byteCount: 4096), at: 4096, .toDevice)
    var linked = try reservation.sync()
    let live = linked.address + 4096
    let gap = try rig.read(live - 64)
    #expect(gap.place == .gap && gap.distance == -64 && gap.neighbour?.range.start == live)
    #expect(gap.neighbour?.what == (isDebugged ? "link" : "mapping"))
    _ = try linked.unlink(4096..<8192)
    let ended = try rig.read(live + 64)
    #expect(ended.place == .ended && ended.mapping?.range.start == live && ended.offset == 64)
    _ = try linked.destroy()
    rig.device.close()
  }

  /// Read after the close: what was live then has ended with the domain.
  @Test func afterTheClose() throws {
    if Self.isDebugged { return }
    let rig = try Self.ways[0].rig()
    let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 4096), .toDevice)
    try EndToEndTests.transfer(rig.device.registers(bar: 0), mapping.address, 8, toDevice: false)
    rig.device.close()
    let story = try #require(rig.dma.faults.faults.last?.story)
    #expect(story.place == .ended && story.mapping?.end == .closed && story.mapping?.range.start == mapping.address)
    #expect(story.description.contains("when the domain was closed"))
    _ = try mapping.unmap()
  }

  /// A device of a domain that several share is told of the mapping, whoever made it.
  @Test func sharedDomains() throws {
    let machine = SimulatedHost(
      .smmuv3Nested, devices: [LazyTests.address: EduModel(addressBits: 64), "0000:00:03.0": EduModel(addressBits: 64)])
    let first = try Device(LazyTests.address, on: machine.host)
    let second = try Device("0000:00:03.0", on: machine.host, sharing: first.dma)
    let mapping = try first.dma.map(try first.dma.buffer(byteCount: 4096), .toDevice)
    try EndToEndTests.transfer(second.registers(bar: 0), mapping.address, 8, toDevice: false)
    #expect(first.dma.faults.count == 0)
    let fault = try #require(second.dma.faults.faults.first)
    #expect(fault.story?.place == .live && fault.story?.mapping?.range.start == mapping.address)
    _ = try mapping.unmap()
    second.close()
    first.close()
  }
}
