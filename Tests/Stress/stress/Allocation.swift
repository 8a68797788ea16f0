import AddressSpace
import AddressSpaceModels
import CIOMMU
import Glibc

/// Threads that use one address allocator.
struct Allocation {
  private let allocator: Allocator

  /// In a box, since closures of threads take no value that cannot be copied.
  private final class Allocator: Sendable {
    let value: AddressAllocator
    init() throws(RangeStoreFailure) {
      let range = IOVARange(start: IOVA(0x1000), byteCount: 1 << 32)!
      value = try AddressAllocator(usable: [range], granule: .fourKiB)
    }
  }

  init() throws { allocator = try Allocator() }

  /// Threads come, leave addresses in the magazines of their processor, and end: nothing is lost with them.
  func endingThreads(_ run: Run) throws -> String? {
    while !run.isOver { run.inThreads(run.threads) { _, numbers in work(run, &numbers, steps: 200) } }
    return verdict(run)
  }

  /// Threads go from processor to processor.
  func movingThreads(_ run: Run) throws -> String? {
    let processors = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
    run.inThreads(run.threads) { _, numbers in
      while !run.isOver {
        _ = ci_pin_to_cpu(UInt32(numbers.next(processors)))
        work(run, &numbers, steps: 50)
      }
    }
    return verdict(run)
  }

  private func work(_ run: Run, _ numbers: inout SplitMix64, steps: Int) {
    var live: [(start: IOVA, byteCount: UInt64)] = []
    for _ in 0..<steps {
      if live.count < 40, numbers.next(2) == 0 || live.isEmpty {
        let byteCount = UInt64(0x1000) << UInt64(numbers.next(10))
        guard let start = try? allocator.value.allocate(byteCount: byteCount) else { continue }
        if live.contains(where: { $0.start < start + Int(byteCount) && start < $0.start + Int($0.byteCount) }) {
          run.fail("\(start) was given out twice")
        }
        live.append((start, byteCount))
      } else {
        let (start, byteCount) = live.remove(at: numbers.next(live.count))
        allocator.value.free(start, byteCount: byteCount)
      }
      run.note()
    }
    for (start, byteCount) in live { allocator.value.free(start, byteCount: byteCount) }
  }

  private func verdict(_ run: Run) -> String? {
    if let failure = run.firstFailure { return failure }
    let left = allocator.value.statistics
    if left.liveCount != 0 { return "\(left.liveCount) addresses were lost" }
    allocator.value.emptyCaches()
    return allocator.value.checkInvariants() ?? (allocator.value.statistics.cachedCount == 0 ? nil : "not empty")
  }
}
