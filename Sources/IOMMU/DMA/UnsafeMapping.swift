public import AddressSpace

/// Memory of the caller's that a device may reach, until ``unmap()`` or until this value is dropped.
///
/// The caller keeps the memory alive and at its place meanwhile, and touches it as the direction allows: nothing here can
/// check that, hence the name.
@safe
public struct UnsafeMapping: ~Copyable, @unchecked Sendable {
  let core: Unmanaged<DomainCore>
  /// The mapped pages; `address` may lie within the first where widening was allowed.
  let pages: (address: IOVA, byteCount: Int)
  /// The address to give to the device.
  public let address: IOVA
  /// Length in bytes.
  public let byteCount: Int
  /// How it was mapped.
  let kind: MappingKind

  init(
    core: Unmanaged<DomainCore>, pages: (address: IOVA, byteCount: Int), address: IOVA, byteCount: Int,
    kind: MappingKind = .own
  ) {
    self.kind = kind
    unsafe self.core = core
    self.pages = pages
    self.address = address
    self.byteCount = byteCount
  }

  /// The same, of which debug mode has a record.
  consuming func recorded(_ id: UInt64) -> UnsafeMapping {
    let (core, pages, address, byteCount) = unsafe (core, pages, address, byteCount)
    discard self
    return unsafe UnsafeMapping(core: core, pages: pages, address: address, byteCount: byteCount, kind: .recorded(id))
  }

  deinit { _ = unsafe DomainCore.dropUnsafe(core, kind, pages.address, pages.byteCount) }

  /// Takes the memory out of the device's reach.
  ///
  /// - Throws: `.system` with the kernel's errno, `.mismatch`, `.forked`: the device may still reach the memory then; keep it
  ///   until the device is closed.
  public consuming func unmap() throws(DMAError) {
    let (core, kind, pages) = unsafe (core, kind, pages)
    discard self
    if let error = unsafe DomainCore.dropUnsafe(core, kind, pages.address, pages.byteCount) { throw error }
  }

  /// Who touches the memory next, for ``sync(for:_:)``.
  public enum Side: Hashable, Sendable {
    /// The CPU looks at what the device has written.
    case cpu
    /// The device reads, or writes to, what the CPU has changed.
    case device
  }

  /// Hands a part of the memory over while it stays mapped: to the CPU before it reads what the device has written, to the
  /// device after the CPU has changed what the device reads.
  ///
  /// A barrier, and under ``Protection/bounce`` a copy of just that part, if the direction has that way at all. The
  /// corresponding kernel calls are `dma_sync_single_for_cpu` and `dma_sync_single_for_device`.
  ///
  /// - Parameters:
  ///   - side: Who touches it next.
  ///   - range: The part, in bytes from the start of the memory; nil for all of it. Within the memory.
  public borrowing func sync(for side: Side, _ range: Range<Int>? = nil) {
    let range = range ?? 0..<byteCount, (core, kind) = unsafe (core, kind)
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount, "sync outside of the mapping")
    unsafe core._withUnsafeGuaranteedRef { core in
      switch side {
      case .cpu: kind.syncForCPU(range, core)
      case .device: kind.syncForDevice(range, core)
      }
    }
  }
}
