import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Random use of recurring buffers against a list of what must be kept.
@Suite struct MapCacheModelTests {
  /// What is kept, the longest unmapped first.
  private struct Model {
    let limit: Int
    var kept: [(id: Int, byteCount: Int)] = []
    var hits: UInt64 = 0, misses: UInt64 = 0

    var byteCount: Int { kept.reduce(0) { $0 + $1.byteCount } }

    mutating func use(_ id: Int, _ length: Int) {
      if let place = kept.firstIndex(where: { $0.id == id }) {
        hits += 1
        kept.remove(at: place)
      } else {
        misses += 1
      }
      guard length <= limit else { return }
      while byteCount + length > limit { kept.removeFirst() }
      kept.append((id, length))
    }

    mutating func drop(_ id: Int) { kept.removeAll { $0.id == id } }
  }

  private struct Generator {
    var state: UInt64
    mutating func next(_ count: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int((state >> 33) % UInt64(count))
    }
  }

  @Test(arguments: LazyTests.Tables.kernelOwned, [1, 2, 3] as [UInt64])
  func againstAList(_ tables: LazyTests.Tables, _ seed: UInt64) throws {
    try Caching.withDomain(tables, Caching.options(12 * 4096)) { kernel, device, machine in
      let dma = device.dma
      var random = Generator(state: seed), model = Model(limit: 12 * 4096)
      func make(_ id: Int) throws -> (id: Int, length: Int, buffer: RecurringBuffer) {
        let length = 4096 * (random.next(20) == 0 ? 13 : 1 + random.next(3))
        return (id, length, try RecurringBuffer(dma, byteCount: length))
      }
      var buffers = try (0..<10).map(make), nextID = 10
      for step in 0..<1500 {
        let index = random.next(buffers.count)
        switch random.next(100) {
        case 0:
          try dma.drain()
          model.kept = []
        case 1...9:
          model.drop(buffers[index].id)
          buffers[index] = try make(nextID)
          nextID += 1
        default:
          _ = try buffers[index].buffer.use(dma)
          model.use(buffers[index].id, buffers[index].length)
        }
        let statistics = dma.statistics
        let isSame =
          statistics.cachedBytes == UInt64(model.byteCount) && statistics.cacheHits == model.hits
          && statistics.cacheMisses == model.misses && machine.kernel.census.areas == model.kept.count
        #expect(isSame, "step \(step): \(statistics), \(machine.kernel.census) against \(model)")
        if !isSame { break }
      }
      #expect(model.hits > 200 && model.misses > 200)
    }
  }
}
