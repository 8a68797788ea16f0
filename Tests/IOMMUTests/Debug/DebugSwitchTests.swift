import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Changing the protection in debug mode: what others have mapped meanwhile stays as it is, and nothing is told that is no mistake.
@Suite struct DebugSwitchTests {
  private static let protections: [Protection] = {
    var copying = AutomaticOptions()
    copying.copiesShortMemory = true
    return [
      .strict, .persistent, .bounce, .lazy(.perCPU), .persistent, .automatic(Caching.options()), .persistent,
      .lazy(FlushQueueOptions(.single, depth: 8, timeout: .milliseconds(1))), .automatic(copying), .bounce, .automatic,
    ]
  }()

  /// Threads map, let the device read and write, and unmap, with mappings that outlive some switches, while another switches
  /// between all protections.
  @Test(arguments: LazyTests.Tables.allCases)
  func switchingUnderLoad(_ tables: LazyTests.Tables) async throws {
    let model = BusModel()
    let rig = try DebugRig(tables, .vtd, model: model), dma = rig.dma, bus = try #require(model.bus)
    let isDone = Atomic<Bool>(false), count = Atomic<Int>(0)
    let failures = await inThreads(4) { number in
      defer { isDone.store(true, ordering: .relaxed) }
      if number == 3 {
        for index in 0..<66 {
          try dma.switchProtection(to: Self.protections[index % Self.protections.count])
          usleep(1_000)
        }
        return
      }
      var load = DebugLoad(dma, bus, seed: UInt64(number))
      while !isDone.load(ordering: .relaxed) {
        try load.step()
        count.wrappingAdd(1, ordering: .relaxed)
      }
      try load.finish()
    }
    #expect(failures == [] && count.load(ordering: .relaxed) > 100)
    #expect(rig.reports.isEmpty && rig.machine.faults.isEmpty)
    try dma.switchProtection(to: .strict)
    let statistics = dma.statistics
    #expect(statistics.maps == statistics.unmaps && statistics.liveMappings == 0 && statistics.liveBytes == 0)
    #expect(statistics.leakedBytes == 0 && statistics.queuedBytes == 0 && statistics.persistentBytes == 0)
    // Whatever had a record still would be told now.
    rig.device.close()
    #expect(rig.reports.isEmpty)
  }

  /// While the arena is mapped once for all nothing is protected, whatever begins and ends meanwhile; afterwards all is that is
  /// a device's.
  @Test(arguments: [LazyTests.Tables.ioas, .container])
  func mappingsThatBeginAndEndWithinASwitch(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables), dma = rig.dma
    let (first, second) = (Shared<UInt>(0), Shared<UInt>(0))
    let lent = Shared<Box?>(nil), ended = Shared<Box?>(nil), begun = Shared<Box?>(nil)
    for (box, place) in [(lent, first), (ended, second)] {
      let buffer = try dma.buffer(byteCount: 8192), base = StandingRig.memory(of: buffer)
      place.change { $0 = base }
      let mapping = Box(try dma.map(buffer, .fromDevice))
      box.change { $0 = mapping }
    }
    let third = try dma.buffer(byteCount: 4096), new = StandingRig.memory(of: third)
    let waiting = Shared<BufferBox?>(BufferBox(third))
    let seen = Shared<[Bool]>([])
    let body: @Sendable () -> Void = {
      lent.value!.sync(0..<4096)
      ended.change { $0 = nil }
      let mapped = waiting.value!.map(dma)
      begun.change { $0 = mapped }
      let places = [first.value, first.value + 4096, second.value, new].map { Touch.mayWrite($0) }
      seen.change { $0 = places }
    }
    rig.kernel.interject(before: tables == .ioas ? "ioasMapFile" : "vfioMap", body)
    try dma.switchProtection(to: .persistent)
    #expect(seen.value == [true, true, true, true])
    #expect(begun.value != nil && !Touch.mayRead(new))
    #expect(!Touch.mayRead(first.value) && !Touch.mayRead(first.value + 4096) && Touch.mayWrite(second.value))
    for box in [lent, begun] { box.change { $0 = nil } }
    #expect(Touch.mayWrite(new) && Touch.mayWrite(first.value))
    rig.device.close()
    #expect(rig.reports.isEmpty)
  }

  /// A mapping that a closure may end.
  private final class Box: @unchecked Sendable {
    private var mapping: Mapping
    init(_ mapping: consuming Mapping) { self.mapping = mapping }
    func sync(_ range: Range<Int>) { mapping.sync(for: .cpu, range) { _ in } }
  }

  /// A buffer that a closure may map.
  private final class BufferBox: @unchecked Sendable {
    private var buffer: DMABuffer?
    init(_ buffer: consuming DMABuffer) { self.buffer = consume buffer }

    func map(_ dma: DMADomain) -> Box? {
      guard let buffer = buffer.take(), let mapping = try? dma.map(buffer, .fromDevice) else { return nil }
      return Box(mapping)
    }
  }
}
