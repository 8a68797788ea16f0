import AddressSpace
import Synchronization

/// What maps and unmaps buffers in debug mode.
///
/// A protocol, so that nothing of it is on the data path: what is behind it is called through a table, and only by maps that are
/// sent here by ``Alternative/debug`` and by the ends of mappings that were.
protocol MapDetour: AnyObject, Sendable {
  /// As ``DMADomain/mapOtherwise(_:_:_:_:)``.
  func map(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess,
    in domain: DMADomain
  ) -> DMADomain.Otherwise
  /// As ``DomainCore/unmapOtherwise(_:byteCount:copies:freeing:)``, for a record's number.
  func unmap(
    _ id: UInt64, byteCount: Int, copies: Bool, freeing memory: UnsafeMutableRawPointer?, in core: DomainCore
  ) -> Result<UInt64, MapFailure>
}

/// Without debug mode nothing gets here.
final class NoDetour: MapDetour {
  static let shared = NoDetour()

  func map(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess,
    in domain: DMADomain
  ) -> DMADomain.Otherwise { .own }

  func unmap(
    _ id: UInt64, byteCount: Int, copies: Bool, freeing memory: UnsafeMutableRawPointer?, in core: DomainCore
  ) -> Result<UInt64, MapFailure> { .failure(.notMapped) }
}

extension DebugTracker: MapDetour {
  func map(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess,
    in domain: DMADomain
  ) -> DMADomain.Otherwise {
    let core = domain.core
    var address = IOVA(0), kind = MappingKind.own, granted: UInt8 = 0, isAbove = false
    switch unsafe domain.mapOtherwise(by: core.way, base, byteCount, limits, access) {
    case .failed(let failure): return .failed(failure)
    case .mapped(let iova, let other): (address, kind) = (iova, other)
    case .own:
      switch unsafe core.mapOwned(base, byteCount: byteCount, limits: limits, access: access) {
      case .failure(let failure): return .failed(failure)
      case .success(let placed):
        if placed.iova.rawValue > domain.addressing.limit {
          // A map that was kept: it is kept once more, or unmapped.
          let ended = unsafe core.unmapOwned(placed.iova, of: base, byteCount: byteCount, access: placed.access)
          if case .failure(let failure) = ended { return .failed(failure) }
          return unsafe map(base, byteCount, domain.addressing.limits, access, in: domain)
        }
        isAbove = placed.iova.rawValue > limits.first
        (address, granted) = (placed.iova, placed.access)
      }
    }
    let memory = UInt64(UInt(bitPattern: base))
    let id = begin(DebugRecord(.buffer, address, memory, byteCount, isOurs: true, access, granted: granted, kind))
    if isAbove { domain.tripped() }
    return .mapped(address, .recorded(id))
  }

  func unmap(
    _ id: UInt64, byteCount: Int, copies: Bool, freeing memory: UnsafeMutableRawPointer?, in core: DomainCore
  ) -> Result<UInt64, MapFailure> {
    guard let record = end(id, lazily: core.isLazy) else { return .failure(.notMapped) }
    guard record.kind.isOwn else {
      return unsafe core.unmapOtherwise(record.kind, byteCount: byteCount, copies: copies)
    }
    if let memory = unsafe memory {
      return unsafe core.unmap(record.address, byteCount: byteCount, freeing: memory)
    }
    let base = unsafe UnsafeRawPointer(bitPattern: UInt(record.memory))!
    return unsafe core.unmapOwned(record.address, of: base, byteCount: byteCount, access: record.granted)
  }
}

extension DomainCore {
  /// Never inlined: where the core is somebody else's property, calling what it has would retain that.
  @inline(never)
  func mapByDetour(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess,
    in domain: DMADomain
  ) -> DMADomain.Otherwise { unsafe detour.map(base, byteCount, limits, access, in: domain) }

  /// How a mapping has to be ended, of one with a record as of any other; the record ends.
  func endRecord(of kind: MappingKind) -> Result<MappingKind, MapFailure> {
    // In a fork nothing is looked up: what comes next fails.
    guard isOwner, case .recorded(let id) = kind else { return .success(kind) }
    guard let record = debug?.end(id, lazily: isLazy) else { return .failure(.notMapped) }
    return .success(record.kind)
  }

  /// Whether what is unmapped now waits for a flush.
  var isLazy: Bool { lazyMode.load(ordering: .relaxed) != .strict }

  /// What maps are made by: ``alternative``, or in debug mode what stands behind it.
  var way: Alternative {
    guard let debug else { return alternative.load(ordering: .relaxed) }
    return debug.way.load(ordering: .relaxed)
  }

  func setWay(_ new: Alternative) {
    guard let debug else {
      alternative.store(new, ordering: .relaxed)
      return setHere()
    }
    debug.way.store(new, ordering: .relaxed)
  }
}
