import AddressSpace
import AddressSpaceModels
import CIOMMU
import Glibc
import Synchronization
import Testing

/// Threads that allocate here and free there, on both kinds of slots. `STEPS` in the environment makes it long.
struct AllocatorThreadTests {
  static let steps = environment("STEPS").flatMap { Int($0) } ?? 4_000

  @Test(arguments: SlotMethod.possible, [2, 8])
  func noAddressIsGivenTwice(_ method: SlotMethod, _ threads: Int) throws {
    try exchange(method, threads: threads, isEmptying: false)
  }

  /// Each emptying stops whatever restartable sequence is under way.
  @Test(arguments: SlotMethod.possible)
  func cachesAreEmptiedMeanwhile(_ method: SlotMethod) throws {
    try exchange(method, threads: 3, isEmptying: true)
  }

  @Test(arguments: SlotMethod.possible)
  func nothingIsLostWithAThread(_ method: SlotMethod) throws {
    let crowd = Crowd(try AddressAllocator(usable: Crowd.usable, granule: .fourKiB, method: method), threads: 1)
    for _ in 0..<8 {
      Worker {
        let starts = (0..<40).compactMap { _ in try? crowd.allocator.allocate(byteCount: 0x1000) }
        for start in starts { crowd.allocator.free(start, byteCount: 0x1000) }
      }.join()
    }
    let left = crowd.allocator.statistics
    #expect(left.liveCount == 0)
    #expect(left.cachedCount >= 28)
    crowd.expectEmpty()
  }

  private func exchange(_ method: SlotMethod, threads: Int, isEmptying: Bool) throws {
    let crowd = Crowd(try AddressAllocator(usable: Crowd.usable, granule: .fourKiB, method: method), threads: threads)
    let workers = (0..<threads).map { index in Worker { crowd.work(index, steps: Self.steps) } }
    let emptier = Worker {
      while isEmptying && !crowd.isOver.load(ordering: .relaxed) { crowd.allocator.emptyCaches() }
    }
    for worker in workers { worker.join() }
    crowd.isOver.store(true, ordering: .relaxed)
    emptier.join()
    #expect(crowd.errors.load(ordering: .relaxed) == 0)
    #expect(crowd.allocations.load(ordering: .relaxed) >= threads * Self.steps / 4)
    crowd.freeAll()
    crowd.expectEmpty()
  }
}

extension SlotMethod {
  /// Those that work here.
  static var possible: [SlotMethod] { best == .locked ? [.locked] : [.locked, .restartable] }
}

/// An allocator, what its threads pass to each other, and a mark for each granule that somebody has.
@safe
private final class Crowd: @unchecked Sendable {
  static let usable: IOVARanges = [range(0x1000, 0x7ff_ffff)]
  let allocator: AddressAllocator
  let isOver = Atomic(false)
  let errors = Atomic(0), allocations = Atomic(0)
  fileprivate let letters: [Letters]
  private let marks: UnsafeMutablePointer<Atomic<UInt8>>
  private static let granules = 0x8000

  fileprivate final class Letters: @unchecked Sendable {
    let lock = SpinLock()
    var items: [(start: IOVA, byteCount: UInt64)] = []
  }

  init(_ allocator: consuming AddressAllocator, threads: Int) {
    self.allocator = allocator
    letters = (0..<threads).map { _ in Letters() }
    unsafe marks = .allocate(capacity: Self.granules)
    for index in 0..<Self.granules { unsafe (marks + index).initialize(to: Atomic(0)) }
  }

  deinit { unsafe marks.deallocate() }

  /// Allocates for another thread and frees what others allocated, now and then on another processor.
  func work(_ index: Int, steps: Int) {
    var random = SplitMix64(seed: UInt64(index) + 1)
    for step in 0..<steps {
      if step % 1024 == 0 { _ = ci_pin_to_cpu(.random(in: 0..<UInt32(ci_cpu_limit()), using: &random)) }
      let byteCount = 0x1000 * UInt64.random(in: 1...64, using: &random)
      let limit: UInt64 = random.once(in: 8) ? 0x3ff_ffff : .max
      if let start = try? allocator.allocate(byteCount: byteCount, limit: limit) {
        mark(start, byteCount, from: 0, to: 1)
        if start.rawValue + byteCount - 1 > limit { errors.wrappingAdd(1, ordering: .relaxed) }
        allocations.wrappingAdd(1, ordering: .relaxed)
        letters[Int.random(in: 0..<letters.count, using: &random)].post(start, byteCount)
      } else if let (start, byteCount) = letters.randomElement(using: &random)?.take(keeping: 0) {
        // The space is full of letters to threads that have ended.
        free(start, byteCount)
      }
      while let (start, byteCount) = letters[index].take(keeping: 20) { free(start, byteCount) }
    }
  }

  private func free(_ start: IOVA, _ byteCount: UInt64) {
    mark(start, byteCount, from: 1, to: 0)
    allocator.free(start, byteCount: byteCount)
  }

  private func mark(_ start: IOVA, _ byteCount: UInt64, from old: UInt8, to new: UInt8) {
    let first = Int(start.rawValue >> 12)
    for granule in first..<first + Int(byteCount >> 12) {
      let was = unsafe marks[granule].exchange(new, ordering: .relaxed)
      if was != old { errors.wrappingAdd(1, ordering: .relaxed) }
    }
  }

  func freeAll() {
    for letters in letters { while let (start, byteCount) = letters.take(keeping: 0) { free(start, byteCount) } }
  }

  /// With all freed and all caches empty nothing is left in the store.
  func expectEmpty() {
    #expect(allocator.statistics.liveCount == 0)
    #expect(allocator.checkInvariants() == nil)
    allocator.emptyCaches()
    #expect(allocator.next(from: IOVA(0)) == nil)
    #expect(allocator.statistics.cachedCount == 0)
    #expect(allocator.checkInvariants() == nil)
  }
}

extension Crowd.Letters {
  fileprivate func post(_ start: IOVA, _ byteCount: UInt64) {
    lock.lock()
    items.append((start, byteCount))
    lock.unlock()
  }

  /// One, unless there are so few.
  fileprivate func take(keeping count: Int) -> (start: IOVA, byteCount: UInt64)? {
    lock.lock()
    defer { lock.unlock() }
    return items.count > count ? items.removeFirst() : nil
  }
}

/// A thread of the system's, whose affinity ends with it.
final class Worker: Sendable {
  private let thread: pthread_t

  private final class Start: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }

  init(_ body: @escaping @Sendable () -> Void) {
    var thread = pthread_t()
    let start = unsafe Unmanaged.passRetained(Start(body)).toOpaque()
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue().body()
        return nil
      }, start)
    precondition(result == 0)
    self.thread = thread
  }

  func join() { pthread_join(thread, nil) }
}
