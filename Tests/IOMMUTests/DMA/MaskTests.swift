import AddressSpace
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// A device's mask against what has its address already, and against the maps of other threads.
@Suite struct MaskTests {
  private static let devices = ["0000:00:02.0": EduModel(addressBits: 64), "0000:00:03.0": EduModel(addressBits: 64)]
  private static let low = DMAMask.bits(28)

  private static func withDomain(_ interface: Interface, _ body: (DMADomain) throws -> Void) throws {
    let machine = SimulatedHost(devices: devices)
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
      try body(device.dma)
      device.close()
    }
    #expect(machine.isClean)
  }

  private static func refusal(_ dma: DMADomain) -> DMAError? {
    do throws(DMAError) { try dma.setMask(low) } catch { return error }
    return nil
  }

  /// From its first moment to its last, with links and without, and the mask stays as it was.
  @Test(arguments: Interface.allCases)
  func aReservationAboveIsInTheWay(_ interface: Interface) throws {
    try Self.withDomain(interface) { dma in
      func expectRefusal() {
        let error = Self.refusal(dma)
        #expect(error?.code == .outsideMask && error?.operation == "setMask" && error?.detail != nil)
        #expect(dma.mask == .bits(64))
      }
      var reservation = try dma.reserve(byteCount: 3 * 4096)
      expectRefusal()
      try reservation.link(try dma.buffer(byteCount: 1), at: 4096, .toDevice)
      expectRefusal()
      var linked = try reservation.sync()
      #expect(linked.address.rawValue > Self.low.limit)
      expectRefusal()
      var list = try linked.unlink(4096..<8192)
      expectRefusal()
      reservation = linked.reopen()
      try reservation.link(try dma.buffer(byteCount: 3 * 4096), at: 0, .toDevice)
      expectRefusal()
      list = try reservation.destroy()
      #expect(list.count == 1)
      try dma.setMask(Self.low)
      // One below is in nobody's way.
      var below = try dma.reserve(byteCount: 4096)
      try dma.setMask(.bits(30))
      try dma.setMask(Self.low)
      try below.link(try dma.buffer(byteCount: 1), at: 0, .toDevice)
      linked = try below.sync()
      #expect(linked.address.rawValue <= Self.low.limit)
    }
  }

  /// What nobody uses any more is not in the way: cached, waiting for a flush, or in debug mode for later mappings.
  @Test(arguments: ["cached", "queued", "held"])
  func whatHasEndedIsNotInTheWay(_ what: String) throws {
    let machine = SimulatedHost(devices: Self.devices)
    let device = try Device(
      "0000:00:02.0", on: machine.host, debug: what == "held" ? DebugOptions(keepsCPUOut: false) : nil)
    let dma = device.dma
    if what == "queued" { try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: LazyTests.patient))) }
    var list = ScatterList()
    for _ in 0..<2 { list.append(try dma.buffer(byteCount: 4096)) }
    _ = try dma.map(list, .toDevice).unmap()
    _ = try dma.reserve(byteCount: 8192).destroy()
    let address = try LazyTests.mapAndUnmap(dma)
    #expect(address.rawValue > Self.low.limit && dma.statistics.queuedBytes == (what == "queued" ? 3 * 4096 : 0))
    try dma.setMask(Self.low)
    #expect(try LazyTests.mapAndUnmap(dma).rawValue <= Self.low.limit)
    device.close()
  }

  /// Whose mappings are above nobody knows there, but whose reservation: nothing is linked, and no address told.
  @Test func whereDevicesShareADomain() throws {
    let machine = SimulatedHost(devices: Self.devices)
    do {
      let first = try Device("0000:00:02.0", on: machine.host)
      let second = try Device("0000:00:03.0", on: machine.host, sharing: first.dma)
      let dma = second.dma
      var reservation = try dma.reserve(byteCount: 8192), other = try first.dma.reserve(byteCount: 4096)
      try reservation.link(try dma.buffer(byteCount: 1), at: 0, .toDevice)
      let buffer = try dma.buffer(byteCount: 1)
      try dma.setMask(Self.low)
      let live = dma.statistics.liveMappings
      do throws(DMAError) {
        try reservation.link(buffer, at: 4096, .toDevice)
        Issue.record("linked")
      } catch { #expect(error.code == .outsideMask && error.operation == "link" && error.device == "0000:00:03.0") }
      #expect(live == 1 && dma.statistics.liveMappings == 1)
      do throws(DMAError) {
        _ = try reservation.sync()
        Issue.record("synced")
      } catch { #expect(error.code == .outsideMask && error.operation == "sync" && error.remedy != nil) }
      #expect(dma.statistics.liveMappings == 0)
      try other.link(try first.dma.buffer(byteCount: 1), at: 0, .toDevice)
      #expect(try other.sync().address.rawValue > Self.low.limit, "the other device's mask is as it was")
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }

  // MARK: - Maps under way

  /// The mask is lowered when a map has read it and has no address yet. A lazy domain in which something waits asks for the time
  /// just then.
  private static func lowering(_ tables: LazyTests.Tables, _ body: (DMADomain) throws -> Void) throws {
    try LazyTests.withDomain(tables, FlushQueueOptions(.single, timeout: LazyTests.patient)) { kernel, dma, machine in
      dma.setAddressPolicy(.full)
      _ = try LazyTests.mapAndUnmap(dma)
      kernel.interject(before: "coarseNow") { do { try dma.setMask(low) } catch { Issue.record(error) } }
      try body(dma)
      #expect(dma.mask == low && dma.statistics.liveMappings == 0)
    }
  }

  @Test(arguments: LazyTests.Tables.allCases, ["map", "tryMap", "unsafe", "large"])
  func aMapThatHasReadTheOldMask(_ tables: LazyTests.Tables, _ way: String) throws {
    let pages = Pages(2)
    try Self.lowering(tables) { dma in
      let buffer = try dma.buffer(byteCount: way == "large" ? 4 << 20 : 4096), start = TranslateTests.start(buffer)
      func expectLow(_ mapping: borrowing Mapping) {
        let address = mapping.address
        #expect(address.rawValue <= Self.low.limit && dma.statistics.liveMappings == 1)
        unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: start)!) == address)
      }
      switch way {
      case "unsafe":
        let mapping = try unsafe dma.map(unsafe: pages.all, .toDevice)
        #expect(mapping.address.rawValue <= Self.low.limit && dma.statistics.liveMappings == 1)
        try mapping.unmap()
      case "tryMap":
        switch dma.tryMap(buffer, .toDevice) {
        case .mapped(let mapping): expectLow(mapping)
        case .failed(_, let error): Issue.record(error)
        }
      default: expectLow(try dma.map(buffer, .toDevice))
      }
    }
  }

  /// That the address which must not be used cannot be unmapped: its memory stays out of use, and `tryMap` gives back other memory
  /// with the same contents.
  @Test(arguments: LazyTests.Tables.kernelOwned, ["map", "tryMap"])
  func anAddressThatCannotBeTakenBack(_ tables: LazyTests.Tables, _ way: String) throws {
    try LazyTests.withDomain(tables, FlushQueueOptions(.single, timeout: LazyTests.patient), leaks: true) {
      kernel, dma, machine in
      dma.setAddressPolicy(.full)
      _ = try LazyTests.mapAndUnmap(dma)
      var buffer = try dma.buffer(byteCount: 5000)
      buffer.store(UInt64(77), at: 4992)
      let start = TranslateTests.start(buffer)
      kernel.interject(before: "coarseNow") {
        do {
          try dma.switchProtection(to: .strict)
          try dma.setMask(Self.low)
          kernel.fail(1, of: tables.flushCall, with: .inputOutput)
        } catch { Issue.record(error) }
      }
      if way == "map" {
        do throws(DMAError) {
          _ = try dma.map(buffer, .toDevice)
          Issue.record("mapped")
        } catch { #expect(error.errno == .inputOutput) }
      } else {
        switch dma.tryMap(buffer, .toDevice) {
        case .mapped: Issue.record("mapped")
        case .failed(let other, let error):
          let (place, value) = (TranslateTests.start(other), other.load(at: 4992, as: UInt64.self))
          #expect(error.errno == .inputOutput && place != start && value == 77)
        }
      }
      #expect(dma.statistics.leakedBytes == 8192)
    }
  }

  /// Threads map in all ways while another lowers and raises the mask: what is there when it has been lowered lies below.
  @Test(arguments: LazyTests.Tables.allCases, [false, true])
  func noAddressAboveALoweredMask(_ tables: LazyTests.Tables, _ isLazy: Bool) async throws {
    let machine = SimulatedHost(devices: Self.devices)
    let device = try Device(
      "0000:00:02.0", on: machine.host, interface: tables.interface, translation: tables.choice)
    let dma = device.dma, isLow = Atomic<Bool>(false), isOver = Atomic<Bool>(false)
    dma.setAddressPolicy(.full)
    if isLazy { try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, depth: 32, timeout: .milliseconds(1)))) }
    let failures = await inThreads(3) { thread in
      guard thread == 2 else {
        return try Self.mapInAllWays(dma, thread) { address in
          // While it is low: a mapping that is there now was there when it was lowered, or came later.
          if isLow.load(ordering: .acquiring), address.rawValue > Self.low.limit { throw TooHigh(address: address) }
          return !isOver.load(ordering: .relaxed)
        }
      }
      defer { isOver.store(true, ordering: .relaxed) }
      var lowered = 0
      for _ in 0..<20_000 where lowered < 300 {
        do throws(DMAError) { try dma.setMask(Self.low) } catch {
          if error.code == .outsideMask { continue }
          throw error
        }
        lowered += 1
        isLow.store(true, ordering: .releasing)
        for _ in 0..<lowered % 8 * 100 { _ = isOver.load(ordering: .relaxed) }
        isLow.store(false, ordering: .releasing)
        try dma.setMask(.bits(64))
      }
      if lowered < 20 { throw TooHigh(address: IOVA(UInt64(lowered))) }
    }
    #expect(failures.isEmpty)
    try dma.drain()
    #expect(dma.statistics.liveMappings == 0 && dma.statistics.queuedBytes == 0 && dma.checkAddresses() == nil)
    device.close()
  }

  private struct TooHigh: Error { var address: IOVA }

  /// Maps until `goesOn` says no of an address that is mapped.
  private static func mapInAllWays(
    _ dma: DMADomain, _ thread: Int, _ goesOn: (IOVA) throws -> Bool
  ) throws {
    let pages = Pages(2)
    var round = 0
    while true {
      round += 1
      let isGoingOn: Bool
      // Most are short: those go the shortest way.
      switch round % 16 {
      case 0:
        let linked = try dma.reserve(byteCount: 8192).sync()
        isGoingOn = try goesOn(linked.address)
      case 1:
        var list = ScatterList()
        for _ in 0..<2 { list.append(try dma.buffer(byteCount: 4096)) }
        let mapped = try dma.map(list, .toDevice)
        isGoingOn = try goesOn(mapped.address)
      case 2:
        let mapping = try dma.map(try dma.buffer(byteCount: 3 << 20), .toDevice)
        isGoingOn = try goesOn(mapping.address)
      case 3:
        let mapping = try unsafe dma.mapBulk(unsafe: pages.all, .toDevice)!
        isGoingOn = try goesOn(mapping.address)
      case 4:
        let mapping = try unsafe dma.map(unsafe: pages.all, .toDevice)
        isGoingOn = try goesOn(mapping.address)
      default:
        let mapping = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
        isGoingOn = try goesOn(mapping.address)
      }
      if !isGoingOn { return }
    }
  }

  /// A mask that cannot be set is not tried: maps above it go on, where there is no room below.
  @Test func aRefusedMaskIsNotNoticed() async throws {
    let machine = SimulatedHost(devices: Self.devices)
    let device = try Device("0000:00:02.0", on: machine.host), dma = device.dma, isOver = Atomic<Bool>(false)
    dma.setAddressPolicy(.full)
    // All that is below, and one page above.
    try dma.setMask(.bits(16))
    var held: [Held] = []
    while let range = try? dma.reserve(byteCount: 4096).sync() { held.append(Held(range)) }
    try dma.setMask(.bits(64))
    held.append(Held(try dma.reserve(byteCount: 4096).sync()))
    let failures = await inThreads(2) { thread in
      guard thread == 1 else {
        while !isOver.load(ordering: .relaxed) { _ = try LazyTests.mapAndUnmap(dma) }
        return
      }
      defer { isOver.store(true, ordering: .relaxed) }
      for _ in 0..<3_000 {
        do throws(DMAError) { try dma.setMask(.bits(16)) } catch {
          guard error.code == .outsideMask else { throw error }
          continue
        }
        throw TooHigh(address: IOVA(0))
      }
    }
    #expect(failures.isEmpty)
    held = []
    device.close()
  }

  private final class Held {
    let range: LinkedRange
    init(_ range: consuming LinkedRange) { self.range = range }
  }
}
