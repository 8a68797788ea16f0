import AddressSpace
import Synchronization

/// Up to which length memory is copied rather than mapped, by what the device does with it, in bytes; 0 where never.
package struct CopyLimits: Equatable {
  package var read = 0, write = 0, both = 0

  /// What a pair, one map and its unmap, takes for memory of some length, in nanoseconds.
  package struct Sample {
    var byteCount: Int
    /// The kernel's calls; copying once, with the place for the copy; filling with zeros.
    var map: UInt64, copy: UInt64, zero: UInt64

    package init(byteCount: Int, map: UInt64, copy: UInt64, zero: UInt64) {
      (self.byteCount, self.map, self.copy, self.zero) = (byteCount, map, copy, zero)
    }
  }

  /// From samples of rising lengths.
  package init(_ samples: [Sample]) {
    read = Self.limit(samples) { $0.copy }
    write = Self.limit(samples) { $0.copy + $0.zero }
    both = Self.limit(samples) { $0.copy * 2 }
  }

  package init() {}

  /// Where the two lines cross: up to the last length from the first on that is cheaper to copy, and as far beyond it as the
  /// differences say.
  private static func limit(_ samples: [Sample], _ cost: (Sample) -> UInt64) -> Int {
    let gains = samples.map { Double($0.map) - Double(cost($0)) }
    guard let first = gains.first, first >= 0 else { return 0 }
    guard let next = gains.firstIndex(where: { $0 < 0 }) else { return samples.last!.byteCount }
    let (below, above) = (samples[next - 1].byteCount, samples[next].byteCount)
    return below + Int(Double(above - below) * gains[next - 1] / (gains[next - 1] - gains[next]))
  }

  subscript(access: DMAAccess) -> Int { access == .read ? read : access == .write ? write : both }
}

extension Limits {
  /// The longest memory that the library copies of itself, in bytes.
  package static let longestCopy = 1 << 20
}

extension DomainCore {
  /// Times maps and copies of a piece of the library's own memory; whether an arena grew above the first limit.
  func timeCopies(_ limits: AddressLimits) throws(DMAError) -> (CopyLimits, isAbove: Bool) {
    let length = Limits.longestCopy
    let memory: UnsafeMutableRawPointer
    do throws(Errno) {
      unsafe memory = try kernel.mapMemory(byteCount: length, descriptor: -1, offset: 0)
    } catch { throw DMAError(.outOfMemory, "calibrate", errno: error, byteCount: UInt64(length)) }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: length)
    var isMapped = false
    defer { if !isMapped { unsafe kernel.unmapMemory(memory, byteCount: length) } }
    var isAbove = false, samples: [CopyLimits.Sample] = []
    var byteCount = Int(granuleMask) + 1
    while byteCount <= length {
      let map = try unsafe timeMap(memory, byteCount, &isMapped)
      let copy = try unsafe timeCopy(memory, byteCount, limits, &isAbove)
      samples.append(.init(byteCount: byteCount, map: map, copy: copy.copy, zero: copy.zero))
      byteCount *= 2
    }
    return (CopyLimits(samples), isAbove)
  }

  private static var timingsEach: Int { 7 }

  /// The shortest of some pairs. What the kernel will not unmap stays where it is: it holds zeros, and no device is told of it.
  private func timeMap(
    _ memory: UnsafeMutableRawPointer, _ byteCount: Int, _ isMapped: inout Bool
  ) throws(DMAError) -> UInt64 {
    let length = UInt64(byteCount), iova: IOVA
    do throws(RangeStoreFailure) {
      iova = try afterDrain { () throws(RangeStoreFailure) in
        try locked { state throws(RangeStoreFailure) in
          try state.store.allocate(RangeStore.Request(byteCount: length), kind: .guard)
        }
      }
    } catch { throw failed(.space(error), "calibrate", byteCount: byteCount) }
    var shortest = UInt64.max, calls: UInt64 = 0, failure: MapFailure?
    do throws(Errno) {
      for _ in 0..<Self.timingsEach where failure == nil {
        let began = kernel.costClock(), host = UInt64(UInt(bitPattern: memory))
        calls += 1
        try translation.map(iova: iova.rawValue, address: host, byteCount: length, access: .readWrite)
        (isMapped, calls) = (true, calls + 1)
        let done = try translation.unmap(iova: iova.rawValue, byteCount: length)
        shortest = min(shortest, kernel.costClock() &- began)
        if done == length { isMapped = false } else { failure = .mismatch(done) }
      }
    } catch { failure = .system(error) }
    locked { state in
      state.statistics.systemCalls &+= callsEach &* calls
      if isMapped { state.statistics.leakedBytes += length } else { _ = state.store.remove(iova) }
    }
    if let failure { throw failed(failure, "calibrate", iova, byteCount: byteCount) }
    return shortest
  }

  private func timeCopy(
    _ memory: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ isAbove: inout Bool
  ) throws(DMAError) -> (copy: UInt64, zero: UInt64) {
    var copy = UInt64.max, zero = UInt64.max, left = Self.timingsEach
    let page = PageSize(byteCount: granuleMask + 1)!
    while left > 0 {
      let began = kernel.costClock()
      guard
        let (base, _) = unsafe coherent.allocate(byteCount: byteCount, alignment: page, limit: limits.last)
      else {
        if try growCoherent(byteCount: byteCount, alignment: page, limits) { isAbove = true }
        continue
      }
      unsafe base.copyMemory(from: memory, byteCount: byteCount)
      let copied = kernel.costClock()
      unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
      zero = min(zero, kernel.costClock() &- copied)
      unsafe coherent.free(base)
      copy = min(copy, copied &- began)
      left -= 1
    }
    return (copy, zero)
  }
}
