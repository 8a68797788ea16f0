import AddressSpace
import Synchronization

/// Finding out what an invalidation costs.
extension DomainCore {
  /// What is known, where that is not a minute old; else by signs, else by timing.
  func calibrate(_ options: AutomaticOptions) throws(DMAError) -> Calibration {
    let isProcessOwned = processOwned != nil
    if let isDear = options.isInvalidationDear {
      return Calibration(.told, isDear: isDear, isProcessOwned: isProcessOwned)
    }
    let now = kernel.now()
    if let (known, time) = protection.withLock({ $0.measured }), now &- time < Limits.calibrationLifetime {
      return known
    }
    let calibration: Calibration
    if let sign = Calibration.Evidence.sign(on: kernel) {
      calibration = Calibration(sign, isDear: true, isProcessOwned: isProcessOwned)
    } else {
      let time = if let processOwned { try timeInvalidation(processOwned) } else { try timeUnmap() }
      calibration = Calibration(
        .timings(shortest: time), isDear: time >= Limits.dearInvalidation, isProcessOwned: isProcessOwned)
    }
    protection.withLock { $0.measured = (calibration, now) }
    return calibration
  }

  private func timeInvalidation(_ processOwned: any ProcessOwnedTranslation) throws(DMAError) -> UInt64 {
    var shortest = UInt64.max
    for _ in 0..<Calibration.timingCount {
      let began = kernel.costClock()
      do throws(Errno) { try processOwned.invalidateAll() } catch { throw failed(.system(error), "calibrate") }
      shortest = min(shortest, kernel.costClock() &- began)
    }
    return shortest
  }

  /// Of a page that holds zeros and that a device may read. If the kernel will not unmap it, it stays where it is.
  private func timeUnmap() throws(DMAError) -> UInt64 {
    let length = granuleMask + 1
    let page: UnsafeMutableRawPointer
    do throws(Errno) {
      unsafe page = try kernel.mapMemory(byteCount: Int(length), descriptor: -1, offset: 0)
    } catch { throw DMAError(.outOfMemory, "calibrate", errno: error, byteCount: length) }
    let iova: IOVA
    do throws(RangeStoreFailure) {
      iova = try afterDrain { () throws(RangeStoreFailure) in
        try locked(insertions: 1) { state throws(RangeStoreFailure) in
          try state.store.allocate(RangeStore.Request(byteCount: length), kind: .guard)
        }
      }
    } catch {
      unsafe kernel.unmapMemory(page, byteCount: Int(length))
      throw failed(.space(error), "calibrate", byteCount: Int(length))
    }
    let (shortest, failure, isMapped) = timeUnmap(UInt64(UInt(bitPattern: page)), length, at: iova)
    locked { state in
      if isMapped { state.statistics.leakedBytes += length } else { _ = state.store.remove(iova) }
    }
    if !isMapped { unsafe kernel.unmapMemory(page, byteCount: Int(length)) }
    if let failure { throw failed(failure, "calibrate", iova, byteCount: Int(length)) }
    return shortest
  }

  private func timeUnmap(
    _ address: UInt64, _ length: UInt64, at iova: IOVA
  ) -> (shortest: UInt64, failure: MapFailure?, isMapped: Bool) {
    var shortest = UInt64.max, calls: UInt64 = 0, isMapped = false
    defer { locked { $0.statistics.systemCalls &+= calls } }
    do throws(Errno) {
      for _ in 0..<Calibration.timingCount {
        calls += 1
        try translation.map(iova: iova.rawValue, address: address, byteCount: length, access: .read)
        isMapped = true
        calls += 1
        let began = kernel.costClock()
        let done = try translation.unmap(iova: iova.rawValue, byteCount: length)
        shortest = min(shortest, kernel.costClock() &- began)
        if done != length { return (shortest, .mismatch(done), true) }
        isMapped = false
      }
    } catch { return (shortest, .system(error), isMapped) }
    return (shortest, nil, false)
  }
}

extension DMADomain {
  /// What ``Protection/automatic(_:)`` was chosen by last; nil before the first switch to it, and in a fork.
  public var calibration: Calibration? {
    ProcessGuard.isOwner ? core.protection.withLock { $0.calibration } : nil
  }
}
