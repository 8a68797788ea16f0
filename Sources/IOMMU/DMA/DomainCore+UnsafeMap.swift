import AddressSpace
import Synchronization

/// Memory of the caller's: the pages that it lies in, a map at an address of his choice, and the end of an unsafe mapping.
extension DomainCore {
  /// The pages that memory lies in, for an operation that errors name.
  func pages(
    of memory: UnsafeRawBufferPointer, widening: Bool, _ operation: String
  ) throws(DMAError) -> (host: UInt64, byteCount: Int, offset: Int) {
    guard let base = memory.baseAddress, memory.count > 0 else {
      throw failed(.space(.empty), operation, byteCount: 0)
    }
    let mask = granuleMask
    let host = UInt64(UInt(bitPattern: base))
    let (end, overflow) = host.addingReportingOverflow(UInt64(memory.count))
    guard !overflow, end <= .max - mask else {
      throw DMAError(
        .overflow, operation, address: host, byteCount: UInt64(memory.count),
        detail: "The memory leaves the address space")
    }
    if (host | end) & mask != 0, !widening {
      throw DMAError(
        .unaligned, operation, address: host, byteCount: UInt64(memory.count),
        detail:
          "Memory must begin and end on a multiple of \(mask + 1) bytes, or the device reaches more than it was given",
        remedy: operation == "register"
          ? "Use buffer(byteCount:), or align the memory"
          : "Use buffer(byteCount:), align the memory, or allow widening: true")
    }
    let first = host & ~mask
    guard let byteCount = Int(exactly: ((end + mask) & ~mask) - first) else {
      throw failed(.space(.overflow), operation, host: host, byteCount: memory.count)
    }
    guard first != 0 else {
      throw DMAError(
        .badMemory, operation, address: host, byteCount: UInt64(memory.count),
        detail: "The first page of a process holds no memory")
    }
    return (first, byteCount, Int(host - first))
  }

  /// Maps whole pages at the caller's address.
  func map(
    host: UInt64, byteCount: Int, at iova: IOVA, _ limits: AddressLimits, access: DMAAccess
  ) -> Result<IOVA, MapFailure> {
    guard isOwner else { return .failure(.forked) }
    guard let range = IOVARange(start: iova, byteCount: UInt64(byteCount)) else { return noSpace(.overflow) }
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    do throws(RangeStoreFailure) {
      _ = try afterDrain { () throws(RangeStoreFailure) in
        try locked(insertions: 1) { state throws(RangeStoreFailure) in
          try state.store.insert(RangeStore.Node(range: range, kind: .fixed, tag: host), limit: limits.now.last)
          state.mapped(iova, host: host, byteCount: UInt64(byteCount), systemCalls: callsEach)
          return iova
        }
      }
    } catch { return noSpace(error) }
    do throws(Errno) {
      try mapMakingRoom(iova: iova.rawValue, address: host, byteCount: UInt64(byteCount), access: access)
    } catch { return undo(iova, byteCount: UInt64(byteCount), .system(error)) }
    return .success(iova)
  }

  /// Ends an unsafe mapping and its reference; the reference stays when the unmap fails.
  static func dropUnsafe(
    _ core: Unmanaged<DomainCore>, _ kind: MappingKind, _ address: IOVA, _ byteCount: Int
  ) -> DMAError? {
    var kind = kind
    switch unsafe core._withUnsafeGuaranteedRef({ [kind] in $0.endRecord(of: kind) }) {
    case .success(let plain): kind = plain
    case .failure(let failure): return unsafe leak(core, failure, "unmap", address, byteCount)
    }
    if kind.isOwn, byteCount > Limits.areaByteCount { return unsafe dropBulk(core, address, byteCount) }
    let result = unsafe core._withUnsafeGuaranteedRef { core in
      unsafe kind.isOwn
        ? core.unmap(address, byteCount: byteCount) : core.unmapOtherwise(kind, byteCount: byteCount)
    }
    switch result {
    case .success:
      unsafe core._withUnsafeGuaranteedRef { _ = $0.finishEnded(waits: false) }
      unsafe core.release()
      return nil
    case .failure(let failure): return unsafe leak(core, failure, "unmap", address, byteCount)
    }
  }
}
