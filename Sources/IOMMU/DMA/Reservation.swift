public import AddressSpace
import Synchronization

/// Addresses that were taken for a device, where memory can be linked: the first half of the two-step form.
///
/// One range for a request of many pieces, taken before the pieces are known:
///
/// ```swift
/// var request = try device.dma.reserve(byteCount: 1 << 20)                // addresses, and nothing behind them
/// try request.link(header, at: 0, .toDevice)                              // each consumes its buffer
/// try request.link(body, at: 4096, .toDevice)
/// let linked = try request.sync()                                         // now the device can have the address
/// registers.store(linked.address.rawValue, at: 0x20)
/// try interrupt.wait(timeout: .milliseconds(10))
/// let buffers = try linked.destroy()                                      // the CPU's again, the addresses free
/// ```
///
/// The order is a matter of types: the address is only to be had after ``sync()``, and nothing is linked after it unless
/// ``LinkedRange/reopen()`` says so. Dropping a reservation destroys it. The corresponding kernel type is
/// `struct dma_iova_state`.
public struct Reservation: ~Copyable, Sendable {
  private let range: ReservedRange

  init(_ range: ReservedRange) { self.range = range }

  /// The reserved range in bytes, whole pages.
  public var byteCount: Int { Int(range.range.byteCount) }

  /// Gives a buffer to the device at an offset from the range's start.
  ///
  /// The kernel call behind it is one `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA` for each 32 MiB. If it throws, the buffer is
  /// freed, and the reservation is as it was. The corresponding kernel call is `dma_iova_link`. O(log n) in the number of
  /// mappings and O(links) in those behind the offset.
  ///
  /// - Throws: `.unaligned` unless `offset` is a multiple of ``DMADomain/granule``, `.outsideAperture` when the buffer's
  ///   pages leave the range, `.overlap` where something is linked, `.invalidArgument` for a buffer of another domain,
  ///   `.outsideMask` when the device's mask was lowered below the range, as it can be in a domain that devices share,
  ///   `.outOfMemory`, `.memoryLock`, `.tooManyMappings`, `.closed`, `.forked`, `.system`.
  public mutating func link(
    _ buffer: consuming DMABuffer, at offset: Int, _ direction: DMADirection
  ) throws(DMAError) {
    let isOurs = unsafe buffer.core.toOpaque() == Unmanaged.passUnretained(range.core).toOpaque()
    guard isOurs else {
      throw DMAError(
        .invalidArgument, "link", device: range.deviceName, detail: "The buffer belongs to another domain",
        remedy: "Get it from this domain's buffer(byteCount:)")
    }
    try range.link(MemoryPart(buffer), at: offset, direction)
  }

  /// Gives memory of the caller's to the device, until it is unlinked; the caller keeps it alive and at its place.
  ///
  /// Whole pages only, as in ``DMADomain/map(unsafe:_:at:widening:)``. With `widening`, memory at offset 0 may begin in mid
  /// page, and ``LinkedRange/address`` then lies as far in the range's first page; memory at any offset may end in mid page.
  /// Otherwise as ``link(_:at:_:)``.
  ///
  /// - Throws: `.empty`, `.unaligned`, `.overflow`, `.badMemory`, `.notRegistered`, and as ``link(_:at:_:)``.
  public mutating func link(
    unsafe memory: UnsafeRawBufferPointer, at offset: Int, _ direction: DMADirection, widening: Bool = false
  ) throws(DMAError) {
    do throws(DMAError) {
      _ = try unsafe range.core.pages(of: memory, widening: widening, "link")
    } catch { throw error.on(range.deviceName) }
    try range.link(unsafe MemoryPart(unsafe: memory, isWidened: widening), at: offset, direction)
  }

  /// Takes what is linked in a range of offsets back from the device; the addresses stay reserved.
  ///
  /// One kernel call for each run of links without a gap, 32 MiB at most each, with a lazy ``Protection`` as well. The
  /// corresponding kernel call is `dma_iova_unlink`.
  ///
  /// - Returns: The buffers in the order of their offsets, without memory of the caller's, which is the caller's again.
  /// - Throws: `.invalidArgument` when `offsets` cut a link: then all stay; otherwise as ``MappedList/unmap()``.
  public mutating func unlink(_ offsets: Range<Int>) throws(DMAError) -> ScatterList {
    try range.unlink(offsets: offsets)
  }

  /// On return the device reaches all that is linked, and the address is to be had.
  ///
  /// With page tables of the kernel's every link is complete by itself, so this makes no system call. The corresponding
  /// kernel call is `dma_iova_sync`.
  ///
  /// - Throws: `.forked`, `.closed`, `.outsideMask` as ``link(_:at:_:)``: the reservation is gone then.
  public consuming func sync() throws(DMAError) -> LinkedRange {
    let range = range
    guard ProcessGuard.isOwner else { throw range.core.failed(.forked, "sync").on(range.deviceName) }
    guard !range.core.isClosed.load(ordering: .relaxed) else {
      throw range.core.failed(.closed, "sync").on(range.deviceName)
    }
    try range.checkMask("sync")
    return LinkedRange(range)
  }

  /// Unlinks everything and gives the addresses back. The corresponding kernel calls are `dma_iova_destroy` and, where
  /// nothing was linked, `dma_iova_free`.
  ///
  /// - Returns: As ``unlink(_:)``.
  /// - Throws: As ``MappedList/unmap()``.
  public consuming func destroy() throws(DMAError) -> ScatterList { try range.unlink(offsets: 0..<Int.max) }
}

/// A reservation whose links the device may use: the second half of the two-step form, see ``Reservation``.
///
/// Dropping it unlinks everything and gives the addresses back.
public struct LinkedRange: ~Copyable, Sendable {
  private let range: ReservedRange

  init(_ range: ReservedRange) { self.range = range }

  /// The address to give to the device: what is linked at an offset lies that far from it.
  ///
  /// Memory at offset 0 that begins in mid page does so here too, and what follows at an offset lies that far from the
  /// *page's* start.
  public var address: IOVA { range.address }

  /// The reserved range in bytes, whole pages.
  public var byteCount: Int { Int(range.range.byteCount) }

  /// As ``Reservation/unlink(_:)``: the other links stay within the device's reach.
  public mutating func unlink(_ offsets: Range<Int>) throws(DMAError) -> ScatterList {
    try range.unlink(offsets: offsets)
  }

  /// Lets more be linked; the address is to be had again after the next ``Reservation/sync()``. What is linked stays so.
  public consuming func reopen() -> Reservation { Reservation(range) }

  /// As ``Reservation/destroy()``.
  public consuming func destroy() throws(DMAError) -> ScatterList { try range.unlink(offsets: 0..<Int.max) }
}

extension DMADomain {
  /// Takes addresses below the device's mask, with nothing behind them yet.
  ///
  /// The range keeps to the ``constraints``' boundary, if it is shorter than that, and to their alignment; their segment
  /// count and length are for lists. Makes no system call. The corresponding kernel call is `dma_iova_try_alloc`.
  ///
  /// - Parameters:
  ///   - byteCount: The length, which is rounded up to whole pages.
  ///   - alignment: The range begins on a multiple of it; nil stands for the length rounded up to a power of two, 2 MiB at
  ///     most, which suits large pages.
  /// - Throws: `.empty`, `.overflow`, `.noSpace`, `.outOfMemory`, `.closed`, `.forked`. O(log n) in the number of mappings.
  public func reserve(byteCount: Int, alignment: PageSize? = nil) throws(DMAError) -> Reservation {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "reserve", byteCount: byteCount).on(deviceName) }
    guard byteCount > 0 else { throw core.failed(.space(.empty), "reserve", byteCount: byteCount).on(deviceName) }
    guard byteCount <= Int.max / 4 else {
      throw core.failed(.space(.overflow), "reserve", byteCount: byteCount).on(deviceName)
    }
    let length = core.padded(byteCount), limits = addressing.limits
    let request = constraints.request(
      byteCount: length, alignment: alignment.map { max($0, granule) } ?? DomainCore.alignment(length))
    switch core.reserve(request, limits) {
    case .failure(let failure):
      noteFailure(failure, limits)
      throw core.failed(failure, "reserve", byteCount: byteCount, limit: limits.last).on(deviceName)
    case .success(let start):
      let range = IOVARange(start: start, byteCount: length)!
      if limits.isAboveFirst(range) { tripped() }
      return Reservation(ReservedRange(self, range))
    }
  }
}

extension DomainCore {
  /// Takes addresses, with a guard for what is linked there later.
  fileprivate func reserve(_ request: RangeStore.Request, _ limits: AddressLimits) -> Result<IOVA, MapFailure> {
    // A drain calls into the translation.
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    do throws(RangeStoreFailure) {
      return .success(
        try afterDrain { () throws(RangeStoreFailure) in
          try locked(insertions: 2) { state throws(RangeStoreFailure) in
            try state.take(request, limits, kind: .guard, auxiliary: RangeStore.Node.takenMark)
          }
        })
    } catch { return .failure(spaceFailure(error)) }
  }
}
