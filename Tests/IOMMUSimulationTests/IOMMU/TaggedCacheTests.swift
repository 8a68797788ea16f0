import IOMMUSimulation
import Testing

/// The cache of every IOMMU, and the queue of commands, by themselves.
@Suite struct TaggedCacheTests {
  /// Against a list in the order of filling: the same entries, the same displacements.
  @Test(arguments: [1, 2, 3, 8, 33] as [Int])
  func model(_ capacity: Int) {
    var cache = TaggedCache<Int>(capacity: capacity, empty: 0)
    // A ring of slots, as hardware has it.
    var slots = [(tag: UInt64, address: UInt64, value: Int)?](repeating: nil, count: capacity)
    var next = 0, random = UInt64(capacity)
    func draw(_ bound: UInt64) -> UInt64 {
      random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return random >> 33 % bound
    }
    for step in 0..<4000 {
      let tag = draw(3), address = draw(UInt64(capacity) * 2)
      switch draw(8) {
      case 0:
        cache.removeAll { key, _ in key.tag == tag && key.address & 3 == address & 3 }
        for slot in slots.indices where slots[slot].map({ $0.tag == tag && $0.address & 3 == address & 3 }) == true {
          slots[slot] = nil
        }
      case 1...4 where cache.find(tag: tag, address: address) == nil:
        let displaced = cache.fill(tag: tag, address: address, step)
        #expect(displaced?.tag == slots[next]?.tag && displaced?.address == slots[next]?.address)
        slots[next] = (tag, address, step)
        next = (next + 1) % capacity
      default:
        let expected = slots.firstIndex { $0?.tag == tag && $0?.address == address }
        let found = cache.find(tag: tag, address: address)
        #expect(found == expected)
        if let found { #expect(cache[found] == slots[found]?.value) }
      }
      #expect(cache.count == slots.count { $0 != nil })
    }
  }

  @Test func queue() {
    var queue = CommandQueue<Int>(capacityShift: 2)
    func put(_ numbers: Int...) -> [Bool] { numbers.map { queue.put($0) } }
    func take(_ count: Int) -> [Int?] { (0..<count).map { _ in queue.take() } }
    #expect(queue.isEmpty && take(1) == [nil] && queue.freeCount == 4)
    #expect(put(0, 1, 2, 3, 4) == [true, true, true, true, false])
    #expect(queue.isFull && queue.producer == 4 && queue.consumer == 0)
    #expect(take(2) == [0, 1])
    #expect(put(4, 5, 6) == [true, true, false])
    // Full again: the indices differ by the wrap bit alone.
    #expect(queue.producer == 6 && queue.consumer == 2)
    #expect(take(4) == [2, 3, 4, 5])
    #expect(queue.isEmpty && queue.consumer == 6 && queue.deepest == 4)
    for number in 0..<1000 {
      #expect(put(number, -number) == [true, true])
      #expect(take(2) == [number, -number])
    }
    #expect(queue.producer == (6 + 2000) % 8 && queue.consumer == queue.producer)
  }
}
