import AddressSpace
import Synchronization

/// Up to which length memory is copied rather than mapped, by what the device does with it, in bytes; 0 where never.
package struct CopyLimits: Equatable {
  package var read = 0, write = 0, both = 0

  /// What a pair, one map and its unmap, takes for memory of some length, in nanoseconds.
  package struct Sample {
    var byteCount: Int
    /// The kernel's calls for memory that the device reads, and for memory that it may write, of which the kernel marks each page
    /// as changed; copying once, with the place for the copy; filling with zeros.
    var read: UInt64, write: UInt64, copy: UInt64, zero: UInt64

    package init(byteCount: Int, read: UInt64, write: UInt64, copy: UInt64, zero: UInt64) {
      (self.byteCount, self.read, self.write, self.copy, self.zero) = (byteCount, read, write, copy, zero)
    }
  }

  /// From samples of rising lengths.
  package init(_ samples: [Sample]) {
    read = Self.limit(samples.map { ($0.byteCount, $0.read, $0.copy) })
    write = Self.limit(samples.map { ($0.byteCount, $0.write, $0.copy + $0.zero) })
    both = Self.limit(samples.map { ($0.byteCount, $0.write, $0.copy * 2) })
  }

  package init() {}

  /// Where the two lines cross: after as many samples as cost the least in all, each by its share, if those before are copied
  /// and those after are mapped; and as far beyond the last of them as the differences say. One timing that was disturbed
  /// changes little.
  private static func limit(_ samples: [(byteCount: Int, map: UInt64, copy: UInt64)]) -> Int {
    let pairs = samples.map { (map: Double(max($0.map, 1)), copy: Double(max($0.copy, 1))) }
    var best = 0, least = Double.infinity
    for count in 0...samples.count {
      var sum = 0.0
      for (index, pair) in pairs.enumerated() {
        sum += (index < count ? pair.copy : pair.map) / min(pair.copy, pair.map) - 1
      }
      if sum < least { (best, least) = (count, sum) }
    }
    guard best > 0 else { return 0 }
    let last = samples[best - 1].byteCount
    guard best < samples.count else { return last }
    let gain = max(0, pairs[best - 1].map - pairs[best - 1].copy), loss = max(0, pairs[best].copy - pairs[best].map)
    guard gain + loss > 0 else { return last }
    return last + Int(Double(samples[best].byteCount - last) * gain / (gain + loss))
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
    var isMapped = false, isRegistered = false
    defer {
      if isRegistered, !isMapped, unsafe !unregister(afterTiming: memory, length) { isMapped = true }
      if !isMapped { unsafe kernel.unmapMemory(memory, byteCount: length) }
    }
    isRegistered = try unsafe register(forTiming: memory, length)
    var isAbove = false, samples: [CopyLimits.Sample] = []
    var byteCount = Int(granuleMask) + 1
    while byteCount <= length {
      let read = try unsafe timeMap(memory, byteCount, .read, &isMapped)
      let write = try unsafe timeMap(memory, byteCount, .readWrite, &isMapped)
      let copy = try unsafe timeCopy(memory, byteCount, limits, &isAbove)
      samples.append(.init(byteCount: byteCount, read: read, write: write, copy: copy.copy, zero: copy.zero))
      byteCount *= 2
    }
    return (CopyLimits(samples), isAbove)
  }

  /// Where only registered memory can be mapped, that is what a copy is compared with. Whether it is registered now.
  private func register(forTiming memory: UnsafeMutableRawPointer, _ byteCount: Int) throws(DMAError) -> Bool {
    guard let processOwned, processOwned.requiresRegistration else { return false }
    do throws(Errno) {
      _ = try processOwned.register(
        address: UInt64(UInt(bitPattern: memory)), byteCount: UInt64(byteCount), file: nil,
        areaByteCount: UInt64(Limits.areaByteCount))
    } catch { throw failed(.system(error), "calibrate", byteCount: byteCount) }
    return true
  }

  /// False when the kernel will not let go of it: then it stays where it is.
  private func unregister(afterTiming memory: UnsafeMutableRawPointer, _ byteCount: Int) -> Bool {
    let address = UInt64(UInt(bitPattern: memory))
    processOwned!.hide(address: address)
    do throws(Errno) { try processOwned!.unregister(address: address) } catch {
      locked { $0.statistics.leakedBytes += UInt64(byteCount) }
      return false
    }
    return true
  }

  private static var timingsEach: Int { 7 }

  /// The shortest of some pairs. What the kernel will not unmap stays where it is: it holds zeros, and no device is told of it.
  private func timeMap(
    _ memory: UnsafeMutableRawPointer, _ byteCount: Int, _ access: DMAAccess, _ isMapped: inout Bool
  ) throws(DMAError) -> UInt64 {
    let length = UInt64(byteCount), iova: IOVA
    do throws(RangeStoreFailure) {
      iova = try afterDrain { () throws(RangeStoreFailure) in
        try locked(insertions: 1) { state throws(RangeStoreFailure) in
          try state.store.allocate(RangeStore.Request(byteCount: length), kind: .guard)
        }
      }
    } catch { throw failed(.space(error), "calibrate", byteCount: byteCount) }
    var shortest = UInt64.max, calls: UInt64 = 0, failure: MapFailure?
    do throws(Errno) {
      for _ in 0..<Self.timingsEach where failure == nil {
        let began = kernel.costClock(), host = UInt64(UInt(bitPattern: memory))
        calls += 1
        try translation.map(iova: iova.rawValue, address: host, byteCount: length, access: access)
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
