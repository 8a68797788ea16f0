import AddressSpace
import AddressSpaceModels
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Gaps behind mappings, and addresses that wait.
@Suite struct HeldAddressTests {
  private static func mapAndUnmap(_ dma: DMADomain) throws -> IOVA {
    let mapping = try dma.map(try dma.buffer(byteCount: 64), .toDevice), address = mapping.address
    _ = try mapping.unmap()
    return address
  }

  /// An address is not given out again before so many further mappings have ended, whoever has to flush first.
  @Test(arguments: LazyTests.Tables.allCases, [Protection.strict, .lazy(.perCPU)])
  func addressesWait(_ tables: LazyTests.Tables, _ protection: Protection) throws {
    let rig = try DebugRig(tables, .vtd, DebugOptions(heldAddresses: 8))
    try rig.dma.switchProtection(to: protection)
    var seen: [IOVA] = []
    for _ in 0..<9 {
      seen.append(try Self.mapAndUnmap(rig.dma))
      if protection != .strict { try rig.dma.drain() }
    }
    #expect(Set(seen).count == 9)
    #expect(try Self.mapAndUnmap(rig.dma) == seen[0])
    rig.device.close()
  }

  /// So do those of lists and reservations.
  @Test func rangesWait() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(heldAddresses: 8))
    var seen: Set<IOVA> = []
    for _ in 0..<3 {
      var list = ScatterList()
      list.append(try rig.dma.buffer(byteCount: 64))
      let mapped = try rig.dma.map(list, .toDevice)
      seen.insert(mapped.address)
      _ = try mapped.unmap()
      let linked = try rig.dma.reserve(byteCount: 4096).sync()
      seen.insert(linked.address)
      _ = try linked.destroy()
    }
    #expect(seen.count == 6)
    rig.device.close()
  }

  @Test func noneWaitWhereNoneShall() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(heldAddresses: 0))
    let first = try Self.mapAndUnmap(rig.dma)
    #expect(try Self.mapAndUnmap(rig.dma) == first)
    // Nor does the gap stay behind.
    let reserved = try rig.dma.reserve(byteCount: 4096).sync(), place = reserved.address
    _ = try reserved.destroy()
    let again = try rig.dma.reserve(byteCount: 4096).sync()
    #expect(again.address == place)
    _ = try again.destroy()
    // A caller's own address is free at once, with any options, and at no cost to the others.
    let other = try DebugRig(), pages = Pages(1), waiting = try Self.mapAndUnmap(other.dma)
    for _ in 0..<3 { try unsafe other.dma.map(unsafe: pages.all, .toDevice, at: IOVA(0x10_0000)).unmap() }
    #expect(try Self.mapAndUnmap(other.dma) != waiting)
    other.device.close()
    rig.device.close()
  }

  /// Behind each mapping so many pages are nobody's: of a buffer, a list, a reservation, memory of the caller's. From the top
  /// down each comes that far below the one before it.
  @Test(arguments: [0, 1, 3]) func gapsStayFree(_ gap: UInt64) throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(guardPages: Int(gap), heldAddresses: 0))
    let dma = rig.dma, pages = Pages(1), step = (1 + gap) * 4096
    let one = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
    var parts = ScatterList()
    parts.append(try dma.buffer(byteCount: 4096))
    let list = try dma.map(parts, .toDevice)
    #expect(one.address.rawValue - list.address.rawValue == step)
    let reservation = try dma.reserve(byteCount: 4096).sync()
    #expect(list.address.rawValue - reservation.address.rawValue == step)
    let memory = try unsafe dma.map(unsafe: pages.all, .toDevice)
    #expect(reservation.address.rawValue - memory.address.rawValue == step)
    let last = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
    #expect(memory.address.rawValue - last.address.rawValue == step)
    if gap > 0 {
      // Who asks for just that address may have it; the other gaps stay.
      let inside = try unsafe dma.map(unsafe: pages.all, .toDevice, at: list.address + 4096)
      let next = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
      #expect(last.address.rawValue - next.address.rawValue == step)
      try inside.unmap()
      _ = try next.unmap()
    }
    // The gaps go with them: what comes next has the same addresses.
    let first = one.address
    _ = try one.unmap()
    _ = try list.unmap()
    _ = try reservation.destroy()
    try memory.unmap()
    _ = try last.unmap()
    let again = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
    #expect(again.address == first)
    _ = try again.unmap()
    rig.device.close()
  }

  /// Nothing else begins in a gap, whatever comes and goes around it.
  @Test func nothingBeginsInAGap() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(guardPages: 2, heldAddresses: 0, frameCount: 0)), pages = Pages(8)
    var numbers = SplitMix64(seed: 5), live: [Held] = []
    for _ in 0..<400 {
      if live.count > 8, numbers.next() % 2 == 0 {
        live.remove(at: Int(numbers.next() % UInt64(live.count)))
      } else {
        let byteCount = 4096 * Int(1 + numbers.next() % 8)
        live.append(Held(try unsafe rig.dma.map(unsafe: pages.part(0..<byteCount), .toDevice)))
      }
      let sorted = live.map { ($0.mapping.address.rawValue, UInt64($0.mapping.byteCount)) }.sorted { $0.0 < $1.0 }
      #expect(zip(sorted, sorted.dropFirst()).allSatisfy { $1.0 >= $0.0 + $0.1 + 8192 })
    }
    live = []
    rig.device.close()
  }

  /// Also where a boundary of the device's must be kept, but behind what is as long as that.
  @Test func gapsBehindWhatKeepsToABoundary() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(heldAddresses: 0)), dma = rig.dma
    var rules = DMAConstraints()
    rules.boundary = PageSize(shift: 15)
    try dma.setConstraints(rules)
    for (pages, gap) in [(7, UInt64(4096)), (8, 0)] {
      var first = ScatterList(), second = ScatterList()
      first.append(try dma.buffer(byteCount: pages * 4096))
      second.append(try dma.buffer(byteCount: 4096))
      let long = try dma.map(first, .toDevice), end = long.address + pages * 4096
      #expect(long.segments.count == 1)
      let pages = Pages(1)
      if gap > 0 {
        let above = try unsafe dma.map(unsafe: pages.all, .toDevice)
        #expect(above.address.rawValue < end.rawValue || above.address.rawValue >= end.rawValue + gap)
        try above.unmap()
      }
      let short = try dma.map(second, .toDevice)
      #expect(short.address.rawValue < long.address.rawValue || short.address.rawValue >= end.rawValue + gap)
      _ = try short.unmap()
      _ = try long.unmap()
    }
    rig.device.close()
  }

  /// What waits goes first: gaps stay as long as that is enough.
  @Test func whatWaitsGoesBeforeGaps() throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(frameCount: 0)), dma = rig.dma, pages = Pages(1)
    try dma.setMask(.bits(16))
    var live: [Held] = []
    // All 15 pages: seven with a gap, and one for which there was no room.
    for _ in 0..<8 { live.append(Held(try unsafe dma.map(unsafe: pages.all, .toDevice))) }
    let place = live.remove(at: 2).mapping.address
    for _ in 0..<4 {
      let next = try unsafe dma.map(unsafe: pages.all, .toDevice)
      #expect(next.address == place)
      try next.unmap()
    }
    live = []
    rig.device.close()
  }

  /// A gap gives way to what a device cannot reach that joins.
  @Test func aGapGivesWayToADeviceThatJoins() throws {
    let machine = SharingTests.machineWithPeers()
    let options = DebugOptions(guardPages: 6, heldAddresses: 0, keepsCPUOut: false, frameCount: 0)
    let first = try Device(LazyTests.address, on: machine.host, debug: options)
    let dma = first.dma, windows = try machine.host.peerWindows(of: PCIAddress("0000:00:03.0")!).ranges
    let lowest = try #require(windows.first).start.rawValue, highest = windows.last!.last.rawValue, pages = Pages(1)
    // What is above them is taken first.
    var above: [HeldRange] = [], live: [Held] = []
    for byteCount in [256 << 20, 16 << 20, 2 << 20] {
      repeat {
        above.append(HeldRange(try dma.reserve(byteCount: byteCount - 6 * 4096).sync()))
      } while above.last!.range.address.rawValue > highest + UInt64(byteCount)
      above.removeLast()
    }
    repeat {
      live.append(Held(try unsafe dma.map(unsafe: pages.all, .toDevice)))
    } while live.last!.mapping.address.rawValue > lowest
    live.append(Held(try unsafe dma.map(unsafe: pages.all, .toDevice)))
    live.removeAll { held in windows.contains { $0.contains(held.mapping.address) } }
    // Each window begins in the gap of a mapping below it.
    #expect(
      windows.allSatisfy { window in
        live.contains { $0.mapping.address < window.start && window.start < $0.mapping.address + 7 * 4096 }
      }, "\(windows)")
    let second = try Device("0000:00:03.0", on: machine.host, sharing: dma)
    #expect(windows.count > 1 && dma.usableRanges.subtracting(second.dma.usableRanges).isEmpty)
    (live, above) = ([], [])
    second.close()
    first.close()
    #expect(dma.debugReports.isEmpty)
  }

  /// A gap gives way to an address of the caller's choice, also while other addresses wait.
  @Test func aGapGivesWay() throws {
    let rig = try DebugRig(), dma = rig.dma, pages = Pages(1)
    _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap()
    let mapping = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
    try unsafe dma.map(unsafe: pages.all, .toDevice, at: mapping.address + 4096).unmap()
    _ = try mapping.unmap()
    rig.device.close()
  }

  /// Also while the mappings of another thread end all the time, whose addresses wait then.
  @Test func aGapGivesWayUnderLoad() async throws {
    let rig = try DebugRig(.ioas, .vtd, DebugOptions(frameCount: 0)), dma = rig.dma
    let isDone = Atomic<Bool>(false)
    let failures = await inThreads(3) { number in
      guard number == 0 else {
        while !isDone.load(ordering: .relaxed) { _ = try Self.mapAndUnmap(dma) }
        return
      }
      defer { isDone.store(true, ordering: .relaxed) }
      let pages = Pages(1)
      for _ in 0..<300 {
        let mapping = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
        try unsafe dma.map(unsafe: pages.all, .toDevice, at: mapping.address + 4096).unmap()
        _ = try mapping.unmap()
      }
    }
    #expect(failures == [])
    rig.device.close()
  }

  /// Where addresses are short, neither waits nor gaps keep any mapping from being made.
  @Test func allAddressesCanBeUsed() throws {
    var counts: [Int] = []
    for isDebugged in [false, true] {
      let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
      let device = try Device(
        LazyTests.address, on: machine.host, debug: isDebugged ? DebugOptions(keepsCPUOut: false) : nil)
      try device.dma.setMask(.bits(20))
      for _ in 0..<100 { _ = try Self.mapAndUnmap(device.dma) }
      let pages = Pages(1)
      var held: [Held] = []
      while let mapping = try? unsafe device.dma.map(unsafe: pages.all, .fromDevice) { held.append(Held(mapping)) }
      counts.append(held.count)
      held = []
      #expect(device.dma.statistics.liveMappings == 0)
      device.close()
    }
    #expect(counts[0] > 100 && counts[0] == counts[1])
  }

  private final class HeldRange {
    let range: LinkedRange
    init(_ range: consuming LinkedRange) { self.range = range }
  }

  private final class Held {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}
