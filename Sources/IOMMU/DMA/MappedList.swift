public import AddressSpace

/// A scatter list that the device owns: one contiguous IOVA range, in as few segments as the device's
/// ``DMADomain/constraints`` allow.
///
/// Dropping it unmaps it.
@safe
public struct MappedList: ~Copyable, @unchecked Sendable {
  /// A piece to give to the device: some buffers that follow each other without a gap, or a piece of one.
  public struct Segment: Hashable, Sendable {
    /// Where it begins for the device.
    public var address: IOVA
    /// Its length in bytes, without the rest of its last page.
    public var byteCount: Int
  }

  // The list in its parts: `discard self` wants fields that need no destruction.
  private let core: Unmanaged<DomainCore>
  private let parts: ScatterList.Parts
  private let constraints: DMAConstraints
  /// How it was mapped.
  private let kind: MappingKind
  /// Where the range begins; with memory of the caller's that does not begin on a page, its first byte lies further on.
  public let address: IOVA
  /// The range in bytes, whole pages.
  public let byteCount: Int
  /// How many segments there are.
  public let segmentCount: Int

  /// Takes over a reference to `core`, and the list.
  init(
    core: Unmanaged<DomainCore>, address: IOVA, byteCount: Int, list: consuming ScatterList, segmentCount: Int,
    constraints: DMAConstraints, kind: MappingKind = .own
  ) {
    self.kind = kind
    unsafe self.core = core
    (self.address, self.byteCount) = (address, byteCount)
    (self.segmentCount, self.constraints) = (segmentCount, constraints)
    parts = list.take()
  }

  deinit {
    // Nothing can be thrown here: an unmap that fails is counted, and the memory stays out of use.
    if unsafe Self.retire(core, kind, address, byteCount, parts) == nil { _ = ScatterList(parts) }
  }

  /// How many buffers the list has.
  public var count: Int { parts.count }

  /// Where one buffer begins for the device, whichever segment it is in.
  ///
  /// - Precondition: `index` is in `0..<count`.
  public func address(ofBufferAt index: Int) -> IOVA {
    precondition(index >= 0 && index < count, "index outside of the MappedList")
    let part = unsafe parts.base[index]
    let offset = unsafe part.host & core._withUnsafeGuaranteedRef { $0.granuleMask }
    return IOVA(address.rawValue + part.placement + offset)
  }

  /// The segments in the order of the list; their addresses rise. An array a call: ``forEachSegment(_:)`` makes none.
  public var segments: [Segment] {
    var segments: [Segment] = []
    segments.reserveCapacity(segmentCount)
    forEachSegment { segments.append($0) }
    return segments
  }

  /// Calls `body` with each segment, in the order of the list. O(buffers and segments), allocates nothing.
  public func forEachSegment<Failure: Error>(_ body: (Segment) throws(Failure) -> Void) throws(Failure) {
    let mask = unsafe core._withUnsafeGuaranteedRef { $0.granuleMask }
    let address = address
    func tell(_ start: UInt64, _ byteCount: UInt64) throws(Failure) {
      try body(Segment(address: IOVA(address.rawValue + start), byteCount: Int(byteCount)))
    }
    var layout = ListLayout(constraints, granuleMask: mask)
    for index in 0..<parts.count {
      let part = unsafe parts.base[index]
      _ = try layout.add(offset: part.host & mask, byteCount: UInt64(part.byteCount), emit: tell)
    }
    try layout.finish(emit: tell)
  }

  /// Takes all buffers back from the device: one kernel call for each 32 MiB that are mapped. With a lazy ``Protection``
  /// a list of up to 32 MiB waits for the next flush as one range, without a call of its own; a longer one does not wait.
  /// Under ``Protection/bounce`` what the device has written is copied to the parts.
  ///
  /// - Throws: As ``Mapping/unmap()``; the memory that could not be unmapped is leaked then, and counted.
  public consuming func unmap() throws(DMAError) -> ScatterList {
    let (core, kind, address, byteCount, parts) = unsafe (core, kind, address, byteCount, parts)
    discard self
    if let error = unsafe Self.retire(core, kind, address, byteCount, parts) { throw error }
    return ScatterList(parts)
  }

  /// Unmaps and gives the reference back. On failure the reference stays, as do the parts that are still mapped.
  private static func retire(
    _ core: Unmanaged<DomainCore>, _ kind: MappingKind, _ address: IOVA, _ byteCount: Int, _ parts: ScatterList.Parts
  ) -> DMAError? {
    let (failure, done) = unsafe core._withUnsafeGuaranteedRef { core -> (MapFailure?, Int) in
      if core.debug != nil { core.endRecords((0..<parts.count).map { unsafe parts.base[$0] }) }
      if case .bounced(let slot) = kind { return (core.endBounce(parts, in: slot), 0) }
      return core.unmap(parts, from: address, byteCount: UInt64(byteCount))
    }
    guard let failure else {
      unsafe core.release()
      return nil
    }
    return unsafe core._withUnsafeGuaranteedRef { core in
      if case .forked = failure { return core.failed(failure, "unmap(list)", address).on(core.device) }
      parts.free(0..<done)
      let left = (done..<parts.count).reduce(0) { unsafe $0 + Int(parts.base[$1].pages(core.granuleMask).byteCount) }
      return core.leaked(failure, "unmap(list)", address, left)
    }
  }
}
