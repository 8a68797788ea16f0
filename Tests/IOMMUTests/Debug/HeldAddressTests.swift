import AddressSpace
import IOMMU
import IOMMUSimulation
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
    // A caller's own address is free at once, with any options.
    let other = try DebugRig(), pages = Pages(1)
    for _ in 0..<3 { try unsafe other.dma.map(unsafe: pages.all, .toDevice, at: IOVA(0x10_0000)).unmap() }
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

  /// A gap gives way to an address of the caller's choice, also while other addresses wait.
  @Test func aGapGivesWay() throws {
    let rig = try DebugRig(), dma = rig.dma, pages = Pages(1)
    _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap()
    let mapping = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
    try unsafe dma.map(unsafe: pages.all, .toDevice, at: mapping.address + 4096).unmap()
    _ = try mapping.unmap()
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

  private final class Held {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}
