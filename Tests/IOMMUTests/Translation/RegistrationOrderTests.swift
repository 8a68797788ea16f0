import AddressSpace
import IOMMU
import Synchronization
import Testing

/// Ending a registration while its memory is mapped: whoever maps has found the registration, or who ends it finds the mapping.
@Suite struct RegistrationOrderTests {
  /// Rounds in which two threads meet as closely as they can.
  @Test func oneSeesTheOther() throws {
    let cache = RegistrationCache(), host: UInt64 = 0x7f00_0000_0000, iova = IOVA(0x10_0000)
    let table = MappingTable(highest: 1 << 47, granule: .fourKiB, processors: 2)!
    defer { table.deallocate() }
    #expect(table.enter(iova, host: host, byteCount: 4096))
    table.remove(iova)
    let rounds = 200_000, gate = Atomic<Int>(0), wrong = Atomic<Int>(0)
    let isFound = Atomic<Bool>(false), isMapped = Atomic<Bool>(false), next = Atomic<Int>(0)
    /// Until both are there; the second one opens the gate.
    @Sendable func meet(_ round: Int) {
      let mine = gate.wrappingAdd(1, ordering: .acquiringAndReleasing).newValue
      if mine == round * 2 { return }
      while gate.load(ordering: .acquiring) < round * 2 {}
    }
    WorkerThreads.run(2) {
      let isMapper = next.wrappingAdd(1, ordering: .relaxed).oldValue == 0
      for round in 0..<rounds {
        if isMapper {
          cache.note(host, first: host, last: host + 4095, ipa: 0x1000)
          table.remove(iova)
        }
        meet(round * 3 + 1)
        if isMapper {
          _ = table.enter(iova, host: host, byteCount: 4096)
          isFound.store(cache.ipa(of: host, byteCount: 4096) != nil, ordering: .relaxed)
        } else {
          cache.forget(first: host)
          isMapped.store(table.translate(iova, byteCount: 4096) != nil, ordering: .relaxed)
        }
        meet(round * 3 + 2)
        if isMapper, isFound.load(ordering: .relaxed), !isMapped.load(ordering: .relaxed) {
          wrong.wrappingAdd(1, ordering: .relaxed)
        }
        meet(round * 3 + 3)
      }
    }
    #expect(wrong.load(ordering: .relaxed) == 0)
  }
}
