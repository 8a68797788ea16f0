import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The shortest way of a map and a lazy unmap, on tables in a hardware's format: that it is taken, and that it counts, finds and
/// flushes as the others do.
@Suite struct ShortWayTests {
  private static let patient = Protection.lazy(FlushQueueOptions(.perCPU, depth: 64, timeout: LazyTests.patient))

  /// Statistics, the record and both indices, where a mapping goes by the short way from the second on.
  @Test(arguments: [1, 3, 64, 511])
  func whatIsCounted(_ pages: Int) throws {
    let rig = try StandingRig(.smmu, nil, Self.patient), dma = rig.dma
    var buffer = try dma.buffer(byteCount: pages * 4096)
    buffer = try dma.map(buffer, .bidirectional).unmap()
    rig.kernel.resetCounts()
    let before = dma.statistics
    // Makes the index of memory: from here on mappings tell it.
    let none = unsafe dma.translate(UnsafeRawPointer(bitPattern: 4096)!, byteCount: 1)
    #expect(none == nil)
    for _ in 0..<3 {
      let host = StandingRig.memory(of: buffer)
      let mapping = try dma.map(buffer, .bidirectional), address = mapping.address
      #expect(dma.statistics.liveMappings == 1 && dma.statistics.liveBytes == UInt64(pages * 4096))
      #expect(unsafe UInt(bitPattern: dma.translate(address + 7, byteCount: 9)) == host + 7)
      let found = unsafe dma.translate(UnsafeRawPointer(bitPattern: host + 5)!, byteCount: 6)
      #expect(found == address + 5)
      #expect(try rig.writes(address) && rig.writes(address + (pages * 4096 - 8)))
      buffer = try mapping.unmap()
      let gone = unsafe dma.translate(address, byteCount: 1) == nil
      let lost = unsafe dma.translate(UnsafeRawPointer(bitPattern: host)!, byteCount: 1) == nil
      #expect(gone && lost)
    }
    let after = dma.statistics
    #expect(after.maps == before.maps + 3 && after.unmaps == before.unmaps + 3 && after.liveMappings == 0)
    #expect(after.queuedBytes == before.queuedBytes + UInt64(3 * pages * 4096) && after.liveBytes == 0)
    #expect(rig.calls == 0 && after.systemCalls == before.systemCalls && after.gatheredRanges == 0)
    try dma.drain()
    #expect(dma.statistics.queuedBytes == 0)
    rig.device.close()
  }

  /// What was unmapped is out of reach after the flush that follows, and its address comes back after that only.
  @Test func waitsForTheFlush() throws {
    let rig = try StandingRig(.smmu, nil, Self.patient), dma = rig.dma
    var addresses: Set<IOVA> = []
    var buffer = try dma.buffer(byteCount: 4096)
    for _ in 0..<40 {
      let mapping = try dma.map(buffer, .bidirectional), address = mapping.address
      #expect(try rig.writes(address))
      buffer = try mapping.unmap()
      #expect(addresses.insert(address).inserted, "given out again before the flush")
      #expect(try rig.writes(address), "the IOTLB serves it until then")
    }
    try dma.drain()
    for address in addresses { #expect(try !rig.writes(address)) }
    _ = buffer
    rig.device.close()
  }

  /// A full ring flushes, a ring that is closed under way unmaps on the spot, and the timer is armed by the first entry.
  @Test func whatIsMoreThanThat() throws {
    let rig = try StandingRig(.smmu, nil, .lazy(FlushQueueOptions(.single, depth: 8, timeout: LazyTests.patient)))
    let dma = rig.dma
    var buffer = try dma.buffer(byteCount: 4096)
    #expect(!FlushTimer.isRunning(for: rig.kernel))
    rig.kernel.resetCounts()
    for turn in 1...70 {
      buffer = try dma.map(buffer, .bidirectional).unmap()
      #expect(FlushTimer.isRunning(for: rig.kernel))
      #expect(dma.statistics.queuedBytes <= 7 * 4096)
      #expect(rig.kernel.count(of: "hwptInvalidate") == (turn - 1) / 7)
    }
    // The short way sees the switch.
    try dma.switchProtection(to: .strict)
    let address = try LazyTests.mapAndUnmap(dma)
    #expect(try !rig.writes(address))
    _ = buffer
    rig.device.close()
  }

  /// Nothing is mapped any more, and nothing can be, once the domain is closed; a mapping that lives on ends without a call.
  @Test func afterTheClose() throws {
    let rig = try StandingRig(.smmu, nil, Self.patient), dma = rig.dma
    let mapping = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional)
    var other: DMABuffer? = try dma.buffer(byteCount: 4096)
    rig.device.close()
    rig.kernel.resetCounts()
    _ = try mapping.unmap()
    #expect(dma.statistics.liveMappings == 0 && rig.calls == 0)
    let code = StandingRig.code { _ = try dma.map(other.take()!, .bidirectional) }
    #expect(code == .closed)
  }

  /// A mask below what the magazines have is kept, as is the policy.
  @Test func withinTheMask() throws {
    let rig = try StandingRig(.smmu, nil, Self.patient), dma = rig.dma
    dma.setAddressPolicy(.full)
    let high = try LazyTests.mapAndUnmap(dma)
    #expect(high.rawValue >> 32 != 0)
    try dma.drain()
    try dma.setMask(.bits(30))
    for _ in 0..<3 { #expect(try LazyTests.mapAndUnmap(dma).rawValue < 1 << 30) }
    rig.device.close()
  }

  /// Tables that are taken out of use are not found by what was remembered of them.
  @Test func tablesThatWent() throws {
    let rig = try StandingRig(.smmu), dma = rig.dma, pages = Pages(512), at = IOVA(1 << 30)
    let registration = try unsafe dma.register(unsafe: pages.all)
    for _ in 0..<3 {
      // A page of the region, so that its table is known; then all of the region, whose unmap takes the table.
      try unsafe dma.map(unsafe: pages.part(4096..<8192), .fromDevice, at: at + 4096).unmap()
      try unsafe dma.map(unsafe: pages.all, .fromDevice, at: at).unmap()
      let other = try unsafe dma.map(unsafe: pages.part(0..<4096), .fromDevice, at: at + (1 << 21))
      let address = other.address
      let mapping = try unsafe dma.map(unsafe: pages.part(8192..<12288), .fromDevice, at: at + 8192)
      #expect(try rig.writes(address) && rig.writes(at + 8192) && !rig.writes(at + (1 << 21) + 8192))
      try other.unmap()
      try mapping.unmap()
    }
    try registration.unregister()
    rig.device.close()
  }
}
