public import AddressSpace
import Synchronization

/// A buffer that the device owns: its address as the device sees it, until ``unmap()`` gives the buffer back.
///
/// ```swift
/// let mapping = try device.dma.map(try device.dma.buffer(byteCount: 2048), .fromDevice)
/// registers.store(mapping.address.rawValue, at: 0x20)                     // the device writes there now
/// try interrupt.wait(timeout: .milliseconds(10))
/// let buffer = try mapping.unmap()                                        // out of its reach
/// print(buffer.load(as: UInt32.self))
/// ```
///
/// Dropping it unmaps it. It may outlive its ``Device`` and ``DMADomain``, which may be dropped in any order.
@safe
public struct Mapping: ~Copyable, @unchecked Sendable {
  let core: Unmanaged<DomainCore>
  let base: UnsafeMutableRawPointer
  /// The address to give to the device.
  public let address: IOVA
  /// The buffer's length in bytes; the device reaches no further than the end of its last page.
  public let byteCount: Int
  /// As the buffer's: an earlier unmap of the same memory may still wait for its flush.
  private let reachableUntil: UInt64
  /// What the device may do, as ``DMAAccess/rawValue``.
  private let access: UInt8
  /// How it was mapped.
  private let kind: MappingKind

  /// Takes over a buffer that was mapped at an address, by a map of its own or otherwise.
  @inline(__always)
  init(_ buffer: consuming DMABuffer, at address: IOVA, access: UInt8 = 0, _ kind: MappingKind = .own) {
    (self.address, self.access) = (address, access)
    self.kind = kind
    byteCount = buffer.byteCount
    reachableUntil = buffer.reachableUntil
    unsafe (core, base) = buffer.take()
  }

  deinit { unsafe DomainCore.drop(core, kind, base, byteCount, at: address, after: reachableUntil) }

  /// Takes the buffer back from the device: on return the device cannot reach it any more, or with a lazy
  /// ``Protection`` from the next flush on; with an automatic one the map may be kept for the next of the same buffer. Mapped
  /// under ``Protection/persistent`` it stays within reach, with ``Protection/bounce`` it never was, and has now what the device
  /// has written to its copy.
  ///
  /// The kernel call behind it is one `IOMMU_IOAS_UNMAP` or `VFIO_IOMMU_UNMAP_DMA` for each 32 MiB, none under those two. If one fails, or
  /// unmaps another number of bytes, the memory may still be within the device's reach: it is leaked, counted in
  /// ``DMAStatistics/leakedBytes``, and never reused.
  ///
  /// - Throws: `.system` with the kernel's errno, `.mismatch`, `.forked`.
  public consuming func unmap() throws(DMAError) -> DMABuffer {
    let (core, base, byteCount, address, earlier) = unsafe (core, base, byteCount, address, reachableUntil)
    let (access, kind) = (access, kind)
    discard self
    if case .standing(let range) = kind {
      // A function, since a closure of this size would be called.
      @inline(__always) func give(_ core: DomainCore) -> Bool { unsafe core.giveStanding(range, byteCount) }
      if unsafe core._withUnsafeGuaranteedRef(give) {
        return unsafe DMABuffer(core: core, base: base, byteCount: byteCount, reachableUntil: earlier)
      }
    }
    if kind.isOwn {
      @inline(__always) func unmap(_ core: DomainCore) -> Result<UInt64, MapFailure>? {
        core.unmapHere(address, byteCount)
      }
      switch unsafe core._withUnsafeGuaranteedRef(unmap) {
      case .success(let number)?:
        return unsafe DMABuffer(core: core, base: base, byteCount: byteCount, reachableUntil: max(number, earlier))
      case .failure(let failure)?: throw unsafe DomainCore.leak(core, failure, "unmap", address, byteCount)
      case nil: break
      }
    }
    return try unsafe Self.unmapElse(core, base, byteCount, at: address, earlier, access, kind)
  }

  @inline(never)
  private static func unmapElse(
    _ core: Unmanaged<DomainCore>, _ base: UnsafeMutableRawPointer, _ byteCount: Int, at address: IOVA,
    _ earlier: UInt64, _ access: UInt8, _ kind: MappingKind
  ) throws(DMAError) -> DMABuffer {
    // A function, since a closure of this size would be called.
    @inline(__always) func unmap(_ core: DomainCore) -> Result<UInt64, MapFailure> {
      unsafe kind.isOwn
        ? core.unmapOwned(address, of: base, byteCount: byteCount, access: access)
        : core.unmapOtherwise(kind, byteCount: byteCount)
    }
    switch unsafe core._withUnsafeGuaranteedRef(unmap) {
    case .success(let number):
      return unsafe DMABuffer(core: core, base: base, byteCount: byteCount, reachableUntil: max(number, earlier))
    case .failure(let failure): throw unsafe DomainCore.leak(core, failure, "unmap", address, byteCount)
    }
  }

  /// Which side may touch the memory during ``sync(for:_:_:)``.
  public enum Side: Hashable, Sendable {
    /// The CPU looks at, or changes, what the device shares.
    case cpu
  }

  /// Lets the CPU touch the memory while it stays mapped: partial hand-over, as for a ring of receive buffers.
  ///
  /// The devices that can be attached are coherent, so this costs no cache maintenance: only a barrier on each side.
  /// That the device leaves the memory alone meanwhile is the driver's duty; the span does not leave the closure.
  ///
  /// Under ``Protection/bounce`` the part is copied: from where the device writes before `body`, to where it reads after.
  ///
  /// The corresponding kernel calls are `dma_sync_single_for_cpu` and `dma_sync_single_for_device`.
  ///
  /// - Parameters:
  ///   - side: Who may touch it.
  ///   - range: The part of the buffer that the span is, in bytes; nil for all of it. Within the buffer.
  ///   - body: Looks at it, or changes it.
  public mutating func sync<Result: ~Copyable, Failure: Error>(
    for side: Side, _ range: Range<Int>? = nil, _ body: (inout MutableRawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let range = range ?? 0..<byteCount, (core, kind) = unsafe (core, kind)
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "sync outside of the mapping")
    unsafe core._withUnsafeGuaranteedRef { kind.syncForCPU(range, $0) }
    defer { unsafe core._withUnsafeGuaranteedRef { kind.syncForDevice(range, $0) } }
    // In two steps: Swift 6.2 stops at the sum in its place.
    let start = unsafe base + range.lowerBound
    var span = unsafe MutableRawSpan(_unsafeStart: start, byteCount: range.count)
    return try body(&span)
  }
}

/// What ``DMADomain/tryMap(_:_:)`` answers: the mapping, or the buffer again with the reason.
public enum MapResult: ~Copyable, Sendable {
  /// The device owns the buffer now.
  case mapped(Mapping)
  /// The buffer stays the CPU's.
  case failed(DMABuffer, DMAError)
}
