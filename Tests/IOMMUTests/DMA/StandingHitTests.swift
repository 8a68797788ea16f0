import AddressSpace
import CIOMMU
import IOMMU
import IOMMUSimulation
import Testing

/// What is mapped once for all, found on one processor and given back on another.
@Suite struct StandingHitTests {
  /// Something that another thread takes out.
  private final class Kept<Value: ~Copyable>: @unchecked Sendable {
    var value: Value?
    init() { value = nil }
  }

  /// Runs something on a processor, where there is more than one.
  private func on(_ processor: UInt32, _ body: @escaping @Sendable () throws -> Void) async {
    let failures = await inThreads(1) { _ in
      _ = ci_pin_to_cpu(processor % UInt32(ci_cpu_limit()))
      try body()
    }
    #expect(failures.isEmpty)
  }

  /// Each processor counts for itself; what is live, and whether memory can go, is the sum.
  @Test(arguments: LazyTests.Tables.allCases)
  func mappingsEndOnAnotherProcessor(_ tables: LazyTests.Tables) async throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma, kept = (0..<3).map { _ in Kept<Mapping>() }
    await on(0) { for item in kept { item.value = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional) } }
    #expect(dma.statistics.liveMappings == 3 && dma.statistics.liveBytes == 3 * 4096)
    await on(1) { for item in kept[..<2] { _ = try item.value.take()!.unmap() } }
    let some = dma.statistics
    #expect(some.liveMappings == 1 && some.maps == 3 && some.unmaps == 2 && some.liveBytes == 4096)
    // The last of them keeps the chunk, whichever processor has counted it.
    try dma.switchProtection(to: .strict)
    let last = kept[2].value.take()!, address = last.address
    kept[2].value = consume last
    #expect(dma.statistics.persistentBytes > 0)
    #expect(try rig.writes(address))
    await on(1) { _ = try kept[2].value.take()!.unmap() }
    #expect(dma.statistics.persistentBytes == 0 && dma.statistics.liveMappings == 0)
    #expect(try !rig.writes(address))
    rig.device.close()
  }

  /// A processor that goes from one range to another and back counts for both; an ended registration goes with its last mapping.
  @Test func aProcessorGoesFromRangeToRange() async throws {
    let rig = try StandingRig(.ioas, .vtd, .persistent), dma = rig.dma, first = Pages(4), second = Pages(4)
    let kept = (0..<4).map { _ in Kept<UnsafeMapping>() }, registration = Kept<Registration>()
    registration.value = try unsafe dma.register(unsafe: first.all)
    let other = try unsafe dma.register(unsafe: second.all)
    await on(0) {
      for (index, item) in kept.enumerated() {
        let memory = unsafe index % 2 == 0 ? first.part(0..<100) : second.part(0..<100)
        item.value = unsafe try dma.map(unsafe: memory, .toDevice)
      }
    }
    let calls = rig.calls
    // Two of each: nothing of the first may go before both have.
    try registration.value.take()!.unregister()
    #expect(dma.statistics.registrations == 2 && rig.calls == calls)
    await on(1) { try kept[0].value.take()!.unmap() }
    #expect(dma.statistics.registrations == 2 && dma.statistics.liveMappings == 3)
    await on(0) { try kept[2].value.take()!.unmap() }
    #expect(dma.statistics.registrations == 1 && rig.calls == calls + 1)
    await on(1) { for index in [1, 3] { try kept[index].value.take()!.unmap() } }
    #expect(dma.statistics.registrations == 1 && dma.statistics.liveMappings == 0 && dma.statistics.liveBytes == 0)
    try other.unregister()
    #expect(dma.statistics.registrations == 0 && dma.statistics.leakedBytes == 0)
    rig.device.close()
  }
}
