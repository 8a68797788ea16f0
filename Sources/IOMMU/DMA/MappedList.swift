public import AddressSpace

/// A scatter list that the device owns: one contiguous IOVA range, and a segment a buffer.
///
/// Dropping it unmaps it.
@safe
public struct MappedList: ~Copyable, @unchecked Sendable {
  /// A piece to give to the device.
  public struct Segment: Hashable, Sendable {
    /// Where it begins for the device.
    public var address: IOVA
    /// Its length in bytes, without the rest of its last page.
    public var byteCount: Int
  }

  // The list in its parts: `discard self` wants fields that need no destruction.
  private let core: Unmanaged<DomainCore>
  private let parts: ScatterList.Parts
  /// Where the range begins.
  public let address: IOVA
  /// The range in bytes, whole pages.
  public let byteCount: Int

  /// Takes over a reference to `core`, and the list.
  init(core: Unmanaged<DomainCore>, address: IOVA, byteCount: Int, list: consuming ScatterList) {
    unsafe self.core = core
    self.address = address
    self.byteCount = byteCount
    parts = list.take()
  }

  deinit {
    // Nothing can be thrown here: an unmap that fails is counted, and the memory stays out of use.
    if unsafe Self.retire(core, address, byteCount, parts) == nil { _ = ScatterList(parts) }
  }

  /// How many pieces there are.
  public var count: Int { parts.count }

  /// The pieces in the order of the list; their addresses rise. O(pieces): keep it, rather than ask again and again.
  public var segments: [Segment] {
    unsafe core._withUnsafeGuaranteedRef { core in
      var next = address.rawValue
      return (0..<parts.count).map { index in
        let length = parts.byteCount(at: index)
        defer { next += core.padded(length) }
        return Segment(address: IOVA(next), byteCount: length)
      }
    }
  }

  /// Takes all buffers back from the device with one kernel call.
  ///
  /// - Throws: As ``Mapping/unmap()``; the memory of the whole list is leaked then, and counted.
  public consuming func unmap() throws(DMAError) -> ScatterList {
    let (core, address, byteCount, parts) = unsafe (core, address, byteCount, parts)
    discard self
    if let error = unsafe Self.retire(core, address, byteCount, parts) { throw error }
    return ScatterList(parts)
  }

  /// Unmaps and gives the reference back; on failure both stay, out of use.
  private static func retire(
    _ core: Unmanaged<DomainCore>, _ address: IOVA, _ byteCount: Int, _ parts: ScatterList.Parts
  ) -> DMAError? {
    let failure = unsafe core._withUnsafeGuaranteedRef { $0.unmapParts(address, byteCount: byteCount, parts) }
    guard let failure else {
      unsafe core.release()
      return nil
    }
    return unsafe core._withUnsafeGuaranteedRef { $0.leaked(failure, "unmap(list)", address, byteCount) }
  }
}
