import AddressSpace
import CIOMMU
import Glibc
import Synchronization

/// What the address allocator costs several threads, each on a processor of its own.
enum AllocatorThreads {
  /// `alloc_64`, `alloc_512`: pairs on one and on two threads, against pairs of one page on one.
  static func pairs(_ byteCount: UInt64) throws -> [(variant: String, Measurement)] {
    let shared = SharedAllocator(try AllocatorPairs.allocator())
    let one = try AllocatorPairs.compare(
      "alloc_1, ns", { try AllocatorPairs.lifo(shared.allocator, 0x1000) },
      { try AllocatorPairs.lifo(shared.allocator, byteCount) })
    let cpus = processors(2)
    guard cpus.count == 2 else { return [("threads-1", one), ("threads-2", .notRun("one processor"))] }
    let two = try AllocatorPairs.compare(
      "alloc_1, ns", { try AllocatorPairs.lifo(shared.allocator, 0x1000) },
      {
        let times = onEach(cpus) { _ in (try? AllocatorPairs.lifo(shared.allocator, byteCount)) ?? .nan }
        return times.reduce(0, +) / 2
      })
    return [("threads-1", one), ("threads-2", two)]
  }

  /// `threads_2`, `threads_16`: pairs a second of so many threads together against one; the best of 5.
  static func scaling(_ count: Int) throws -> Measurement {
    let cpus = processors(count)
    guard cpus.count == count else { return .notRun("\(cpus.count) processors") }
    let shared = SharedAllocator(try AllocatorPairs.allocator())
    func rate(_ cpus: [UInt32]) -> Double {
      let pairs = 20_000_000
      let times = onEach(cpus) { _ in
        let began = nanoseconds()
        _ = try? AllocatorPairs.lifo(shared.allocator, 0x1000, count: pairs)
        return Double(nanoseconds() - began)
      }
      return times.reduce(0) { $0 + Double(pairs) * 1e9 / $1 }
    }
    var best = 0.0, anchor = 0.0
    for _ in 0..<5 {
      let one = rate([cpus[0]])
      if case let ratio = rate(cpus) / one, ratio > best { (best, anchor) = (ratio, one) }
    }
    return Measurement(value: best, anchor: "one thread, pairs a second", anchorValue: anchor, repeats: 5)
  }

  /// `cross_thread`: pages allocated by one thread and freed by another, the CPU time of both, against pairs of one.
  static func cross() throws -> Measurement {
    let cpus = processors(2)
    guard cpus.count == 2 else { return .notRun("one processor") }
    let shared = SharedAllocator(try AllocatorPairs.allocator())
    return try AllocatorPairs.compare(
      "alloc_1, ns", { try AllocatorPairs.lifo(shared.allocator, 0x1000) },
      {
        let belt = Belt()
        let times = onEach(cpus) { index in index == 0 ? belt.allocate(shared.allocator) : belt.free(shared.allocator) }
        return times.reduce(0, +) / Double(Belt.batches * Belt.length)
      })
  }

  /// The first processors that this process may run on.
  static func processors(_ count: Int) -> [UInt32] {
    let usable = Mutex<[UInt32]>([])
    onThread {
      for cpu in 0..<UInt32(ci_cpu_limit()) where ci_pin_to_cpu(cpu) == 0 { usable.withLock { $0.append(cpu) } }
    }.join()
    return usable.withLock { Array($0.prefix(count)) }
  }

  /// Runs a function on each of the processors at once, and returns what each returned.
  static func onEach(_ cpus: [UInt32], _ body: @escaping @Sendable (Int) -> Double) -> [Double] {
    let results = Mutex([Double](repeating: 0, count: cpus.count))
    let ready = Shared(0)
    let threads = cpus.indices.map { index in
      onThread {
        _ = ci_pin_to_cpu(cpus[index])
        ready.value.wrappingAdd(1, ordering: .acquiringAndReleasing)
        while ready.value.load(ordering: .acquiring) < cpus.count { ci_cpu_pause() }
        let result = body(index)
        results.withLock { $0[index] = result }
      }
    }
    for thread in threads { thread.join() }
    return results.withLock { $0 }
  }
}

/// Two batches of addresses that go from one thread to another. Who waits reads no clock.
@safe
private final class Belt: @unchecked Sendable {
  static let batches = 2_000, length = 512
  private let full = [Shared(0), Shared(0)]
  private let addresses: UnsafeMutablePointer<IOVA>

  init() { unsafe addresses = .allocate(capacity: 2 * Self.length) }
  deinit { unsafe addresses.deallocate() }

  func allocate(_ allocator: borrowing AddressAllocator) -> Double {
    unsafe run(from: 0) { place in
      unsafe place.pointee = (try? allocator.allocate(byteCount: 0x1000, limit: .max, mayEmptyCaches: true)) ?? IOVA(0)
    }
  }

  func free(_ allocator: borrowing AddressAllocator) -> Double {
    unsafe run(from: 1) { place in unsafe allocator.free(place.pointee, byteCount: 0x1000) }
  }

  @inline(__always)
  private func run(from state: Int, _ body: (UnsafeMutablePointer<IOVA>) -> Void) -> Double {
    var time: UInt64 = 0
    for batch in 0..<Self.batches {
      while full[batch % 2].value.load(ordering: .acquiring) != state { ci_cpu_pause() }
      let began = cpuTime()
      for index in 0..<Self.length { unsafe body(addresses + (batch % 2 * Self.length + index)) }
      time += cpuTime() - began
      full[batch % 2].value.store(1 - state, ordering: .releasing)
    }
    return Double(time)
  }
}

/// An allocator that threads share.
final class SharedAllocator: Sendable {
  let allocator: AddressAllocator
  init(_ allocator: consuming AddressAllocator) { self.allocator = allocator }
}

private final class Shared: Sendable {
  let value: Atomic<Int>
  init(_ value: Int) { self.value = Atomic(value) }
}

/// A thread of the system's.
struct SystemThread {
  fileprivate let thread: pthread_t
  func join() { pthread_join(thread, nil) }
}

private final class ThreadStart: Sendable {
  let body: @Sendable () -> Void
  init(_ body: @escaping @Sendable () -> Void) { self.body = body }
}

func onThread(_ body: @escaping @Sendable () -> Void) -> SystemThread {
  var thread = pthread_t()
  let start = unsafe Unmanaged.passRetained(ThreadStart(body)).toOpaque()
  let result = unsafe pthread_create(
    &thread, nil,
    { argument in
      unsafe Unmanaged<ThreadStart>.fromOpaque(argument!).takeRetainedValue().body()
      return nil
    }, start)
  precondition(result == 0)
  return SystemThread(thread: thread)
}
