import AddressSpace
import AddressSpaceModels
import Testing

/// Memory for nodes is asked for where no spin lock is held: a debug build stops where it is not.
struct RangeStoreLockTests {
  typealias Node = RangeStore.Node

  /// Many nodes, one insertion or several with the lock held: each finds its memory.
  @Test(arguments: [1, 2, 3, 8, 100])
  func memoryIsThereWhenTheLockIs(_ insertions: Int) throws {
    let store = try makeStore(range(0, (1 << 40) - 1)), lock = SpinLock()
    var random = SplitMix64(seed: UInt64(insertions))
    let places = (0..<UInt64(4_000)).shuffled(using: &random)
    for first in stride(from: 0, to: places.count - insertions + 1, by: insertions) {
      store.lock(lock, insertions: insertions)
      defer { lock.unlock() }
      for place in places[first..<first + insertions] {
        try store.insert(Node(range: range(place << 13, place << 13 | 0xfff), kind: .fixed))
      }
    }
    #expect(store.count == places.count / insertions * insertions && store.checkInvariants() == nil)
  }

  /// What an allocator's threads ask of it at once.
  @Test func memoryIsThereForAllThreads() throws {
    let shared = Fed(try AddressAllocator(usable: [range(0x1000, (1 << 46) - 1)], granule: .fourKiB))
    let workers = (0..<4).map { _ in
      Worker {
        for _ in 0..<3_000 {
          let start = try? shared.allocator.allocate(RangeStore.Request(byteCount: 4 << 20))
          precondition(start != nil, "no memory")
        }
      }
    }
    for worker in workers { worker.join() }
    #expect(shared.allocator.statistics.liveCount == 12_000 && shared.allocator.checkInvariants() == nil)
  }

  private final class Fed: @unchecked Sendable {
    let allocator: AddressAllocator
    init(_ allocator: consuming AddressAllocator) { self.allocator = allocator }
  }

  /// Without memory the lock is taken all the same, and the insertion is refused; what takes none is not.
  @Test func withoutMemory() throws {
    let allocator = try AddressAllocator(usable: [range(0x1000, (1 << 46) - 1)], granule: .fourKiB)
    allocator.limitStoreMemory(toChunks: 0)
    var starts: [IOVA] = []
    while let start = try? allocator.allocate(RangeStore.Request(byteCount: 4 << 20)) { starts.append(start) }
    let node = Node(range: range(0x1000, 0x1fff), kind: .fixed)
    #expect(failure { () throws(RangeStoreFailure) in try allocator.insert(node) } == .outOfMemory)
    #expect(allocator.remove(starts[0]) != nil && allocator.checkInvariants() == nil)
    allocator.limitStoreMemory(toChunks: .max)
    #expect(try allocator.allocate(RangeStore.Request(byteCount: 4 << 20)) == starts[0])
  }

  /// Each thread's own locks, in whatever order they are given back.
  @Test func locksAreCounted() {
    #if DEBUG
      Worker {
        let first = SpinLock(), second = SpinLock()
        first.lock()
        let isTaken = second.tryLock(), isTakenTwice = second.tryLock()
        #expect(isTaken && !isTakenTwice && SpinLock.heldCount == 2)
        first.unlock()
        #expect(SpinLock.heldCount == 1)
        second.unlock()
        #expect(SpinLock.heldCount == 0)
      }.join()
    #endif
  }

  #if DEBUG
    @Test func askingWithALockHeldIsFoundOut() async {
      await #expect(processExitsWith: .failure) {
        let lock = SpinLock()
        lock.lock()
        _ = BlockChunk(byteCount: 4096)
      }
      await #expect(processExitsWith: .failure) {
        let store = try makeStore(range(0, (1 << 40) - 1)), lock = SpinLock()
        store.lock(lock)
        _ = try store.allocate(RangeStore.Request(byteCount: 4096))
      }
    }
  #endif
}
