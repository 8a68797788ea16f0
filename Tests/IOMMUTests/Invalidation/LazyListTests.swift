import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Lists and reservations in a lazy mode, on tables that the kernel owns.
@Suite struct LazyListTests {
  private static func options(depth: Int = 1024) -> FlushQueueOptions {
    FlushQueueOptions(.single, depth: depth, timeout: LazyTests.patient)
  }

  /// Each segment on 8 KiB of its own: between two buffers of ``list(_:_:)`` is a gap.
  private static let gaps = DMAConstraints(alignment: PageSize(shift: 13))

  /// Buffers of a page each that do not join, as none ends where its page does.
  private static func list(_ dma: DMADomain, _ count: Int) throws -> ScatterList {
    var list = ScatterList()
    for _ in 0..<count { list.append(try dma.buffer(byteCount: 4000)) }
    return list
  }

  private static func starts(_ list: inout ScatterList) -> Set<UInt> {
    Set((0..<list.count).map { index in list.withBuffer(at: index) { TranslateTests.start($0) } })
  }

  /// Where the memory of new buffers is; they go back.
  private static func memory(_ dma: DMADomain, _ count: Int) throws -> Set<UInt> {
    var list = try list(dma, count)
    return starts(&list)
  }

  private static func memory(byteCount: Int, _ body: (UnsafeRawBufferPointer) throws -> Void) throws {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 4096)
    defer { unsafe memory.deallocate() }
    try unsafe body(UnsafeRawBufferPointer(memory))
  }

  /// A list of many areas with gaps between them is one entry of the ring, and its flush one call.
  @Test(arguments: Interface.allCases)
  func aListWaitsAsOne(_ interface: Interface) throws {
    try LazyTests.withDomain(interface, Self.options(depth: 4)) { kernel, dma, machine in
      try dma.setConstraints(Self.gaps)
      kernel.resetCounts()
      var seen: Set<IOVA> = [], kept = ScatterList()
      for number in 1...3 {
        let mapped = try dma.map(try Self.list(dma, 8), .bidirectional)
        #expect(mapped.byteCount == 15 * 4096 && seen.insert(mapped.address).inserted)
        let first = mapped.address
        var back = try mapped.unmap()
        while back.count > 0 { kept.append(back.removeLast()) }
        #expect(dma.statistics.queuedBytes == UInt64(number * 15 * 4096) && dma.statistics.liveBytes == 0)
        unsafe #expect(dma.translate(first) == nil, "it is not mapped any more for the driver")
      }
      #expect(kernel.count(of: interface == .iommufd ? "ioasMap" : "vfioMap") == 24, "no two are neighbours")
      #expect(dma.statistics.unmaps == 24 && dma.statistics.flushes == 0, "three entries")
      let calls = dma.statistics.systemCalls
      try dma.drain()
      #expect(kernel.count(of: LazyTests.unmapCall(interface)) == 3 && dma.statistics.systemCalls == calls + 3)
      #expect(dma.statistics.queuedBytes == 0 && machine.kernel.census.pinnedBytes == 0)
      let again = try dma.map(try Self.list(dma, 8), .toDevice)
      #expect(seen.contains(again.address), "free again")
    }
  }

  /// Nobody gets an address of it before the flush, in a gap neither; who asks for one there has it flushed.
  @Test(arguments: Interface.allCases)
  func gapsWaitToo(_ interface: Interface) throws {
    try LazyTests.withDomain(interface, Self.options()) { kernel, dma, machine in
      try dma.setConstraints(Self.gaps)
      let mapped = try dma.map(try Self.list(dma, 8), .bidirectional)
      let range = IOVARange(start: mapped.address, byteCount: UInt64(mapped.byteCount))!
      let gap = IOVA(mapped.address.rawValue + 4096)
      _ = try mapped.unmap()
      for _ in 0..<32 {
        let other = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
        #expect(!range.contains(other.address))
      }
      #expect(dma.statistics.flushes == 0)
      try unsafe Self.memory(byteCount: 4096) { page in try unsafe dma.map(unsafe: page, .toDevice, at: gap).unmap() }
      #expect(dma.statistics.flushes == 1)
    }
  }

  /// The memory of each buffer is kept until the flush: of those that came back and were dropped, and of a dropped list.
  @Test(arguments: ["taken apart", "dropped", "dropped while mapped"])
  func everyBufferHasTheTicket(_ way: String) throws {
    try LazyTests.withDomain(.iommufd, Self.options()) { kernel, dma, machine in
      var list = try Self.list(dma, 5)
      let memory = Self.starts(&list)
      let mapped = try dma.map(list, .fromDevice)
      switch way {
      case "taken apart":
        var back = try mapped.unmap()
        while back.count > 0 { _ = back.removeLast() }
      case "dropped": _ = try mapped.unmap()
      default: _ = consume mapped
      }
      #expect(try Self.memory(dma, 20).isDisjoint(with: memory))
      #expect(dma.statistics.flushes == 0)
      try dma.drain()
      #expect(try Self.memory(dma, 20).isSuperset(of: memory), "free after it")
    }
  }

  /// A buffer that is still within reach from an earlier mapping stays so in a list or reservation that is unmapped at once.
  @Test(arguments: ["list", "reservation"])
  func anOlderTicketIsNotLost(_ way: String) throws {
    try LazyTests.withDomain(.iommufd, Self.options()) { kernel, dma, machine in
      let first = try dma.map(try dma.buffer(byteCount: 4096), .fromDevice)
      let buffer = try first.unmap(), memory = TranslateTests.start(buffer)
      if way == "list" {
        var list = ScatterList()
        list.append(buffer)
        list.append(try dma.buffer(byteCount: 40 << 20))
        _ = try dma.map(list, .fromDevice).unmap()
      } else {
        var reservation = try dma.reserve(byteCount: 4096)
        try reservation.link(buffer, at: 0, .fromDevice)
        _ = try reservation.destroy()
      }
      #expect(dma.statistics.queuedBytes == 4096, "the first mapping")
      #expect(try !Self.memory(dma, 20).contains(memory))
      try dma.drain()
      #expect(try Self.memory(dma, 20).contains(memory))
    }
  }

  /// What takes more than one call, and what is unlinked, whose addresses may be linked anew, does not wait.
  @Test(arguments: Interface.allCases)
  func whatDoesNotWait(_ interface: Interface) throws {
    try LazyTests.withDomain(interface, Self.options()) { kernel, dma, machine in
      for length in [32 << 20, (32 << 20) + 4096] {
        var list = ScatterList()
        list.append(try dma.buffer(byteCount: length - 4096))
        list.append(try dma.buffer(byteCount: 4096))
        kernel.resetCounts()
        _ = try dma.map(list, .toDevice).unmap()
        #expect(kernel.count(of: LazyTests.unmapCall(interface)) == (length == 32 << 20 ? 0 : 2))
      }
      #expect(dma.statistics.queuedBytes == 32 << 20)
      var reservation = try dma.reserve(byteCount: 8192)
      try reservation.link(try dma.buffer(byteCount: 4096), at: 4096, .toDevice)
      kernel.resetCounts()
      _ = try reservation.unlink(0..<8192)
      #expect(kernel.count(of: LazyTests.unmapCall(interface)) == 1)
    }
  }

  /// A flush that the kernel refuses keeps the list and its memory, and the next one frees both.
  @Test(arguments: Interface.allCases)
  func aFlushThatFails(_ interface: Interface) throws {
    try LazyTests.withDomain(interface, Self.options()) { kernel, dma, machine in
      try dma.setConstraints(Self.gaps)
      var list = try Self.list(dma, 3)
      let memory = Self.starts(&list)
      _ = try dma.map(list, .toDevice).unmap()
      kernel.fail(1, of: LazyTests.unmapCall(interface), with: .inputOutput)
      #expect(throws: DMAError.self) { try dma.drain() }
      #expect(dma.statistics.queuedBytes == 5 * 4096)
      #expect(try Self.memory(dma, 20).isDisjoint(with: memory))
      try dma.drain()
      #expect(dma.statistics.queuedBytes == 0)
      #expect(try Self.memory(dma, 20).isSuperset(of: memory))
    }
  }

  /// The ring is full and cannot be flushed: the list is unmapped on the spot, and if that fails as well it is leaked.
  @Test(arguments: Interface.allCases, [false, true])
  func noRoomInTheRing(_ interface: Interface, _ fails: Bool) throws {
    try LazyTests.withDomain(interface, Self.options(depth: 2), leaks: fails) { kernel, dma, machine in
      _ = try dma.map(try dma.buffer(byteCount: 64), .toDevice).unmap()
      try dma.setConstraints(Self.gaps)
      var list = try Self.list(dma, 3)
      let memory = Self.starts(&list), mapped = try dma.map(list, .toDevice)
      kernel.fail(1, of: LazyTests.unmapCall(interface), with: .inputOutput)
      if fails { kernel.failFrom(1, with: .inputOutput) }
      do throws(DMAError) {
        _ = try mapped.unmap()
        #expect(!fails)
      } catch { #expect(fails && error.errno == .inputOutput && error.operation == "unmap(list)") }
      kernel.passAll()
      #expect(dma.statistics.queuedBytes == 4096 && dma.statistics.leakedBytes == (fails ? 3 * 4096 : 0))
      #expect(try Self.memory(dma, 20).isDisjoint(with: memory) == fails)
      try dma.drain()
      #expect(try Self.memory(dma, 20).isDisjoint(with: memory) == fails)
    }
  }

  /// Where what waits is all that is in the way, it is flushed: for a list, a reservation, memory in areas, an arena.
  @Test(arguments: Interface.allCases, ["list", "reserve", "bulk", "bulk at", "arena"])
  func whatWaitsIsNotInTheWay(_ interface: Interface, _ way: String) throws {
    try LazyTests.withDomain(interface, Self.options()) { kernel, dma, machine in
      try dma.setMask(.bits(19))  // 128 pages, of which page 0 is never given out
      let mapped = try dma.map(try Self.list(dma, 64), .toDevice), address = mapped.address
      #expect(address == IOVA(0x40000))
      _ = try mapped.unmap()
      #expect(dma.statistics.flushes == 0)
      switch way {
      case "list": _ = try dma.map(try Self.list(dma, 64), .toDevice).unmap()
      case "reserve": _ = try dma.reserve(byteCount: 64 * 4096)
      case "arena": _ = try dma.allocate(UInt8.self, count: 64 * 4096)
      default:
        try unsafe Self.memory(byteCount: 64 * 4096) { memory in
          _ = try unsafe dma.mapBulk(unsafe: memory, .toDevice, at: way == "bulk" ? nil : address)
        }
      }
      #expect(dma.statistics.flushes == 1 && dma.statistics.failedMaps == 0)
    }
  }

  /// A request that no flush can help makes none.
  @Test func whatCannotBeFlushesNothing() throws {
    try LazyTests.withDomain(.iommufd, Self.options()) { kernel, dma, machine in
      try dma.setMask(.bits(32))
      _ = try dma.map(try Self.list(dma, 2), .toDevice).unmap()
      try unsafe Self.memory(byteCount: 4096) { page in
        for address in [0, 0x1001, 0xfee0_0000, 1 << 32, 1 << 60] as [UInt64] {
          #expect(throws: DMAError.self) { try unsafe dma.map(unsafe: page, .toDevice, at: IOVA(address)).unmap() }
          #expect(throws: DMAError.self) { _ = try unsafe dma.mapBulk(unsafe: page, .toDevice, at: IOVA(address)) }
        }
      }
      #expect(dma.statistics.flushes == 0 && dma.statistics.queuedBytes == 8192)
    }
  }
}
