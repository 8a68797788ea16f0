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

  private let core: Unmanaged<DomainCore>
  /// Where the range begins.
  public let address: IOVA
  /// The range in bytes, whole pages.
  public let byteCount: Int
  /// The pieces in the order of the list; their addresses rise.
  public let segments: [Segment]
  private var list: ScatterList?

  init(
    core: Unmanaged<DomainCore>, address: IOVA, byteCount: Int, segments: [Segment], list: consuming ScatterList
  ) {
    unsafe self.core = core
    self.address = address
    self.byteCount = byteCount
    self.segments = segments
    self.list = consume list
  }

  deinit {
    // Nothing can be thrown here: an unmap that fails is counted, and the memory stays out of use.
    if list != nil, retire() != nil { list.take()?.leak() }
  }

  /// Takes all buffers back from the device with one kernel call.
  ///
  /// - Throws: As ``Mapping/unmap()``; the memory of the whole list is leaked then, and counted.
  public consuming func unmap() throws(DMAError) -> ScatterList {
    let error = retire()
    let taken = list.take()!  // nothing is left for the deinit to do
    if let error {
      taken.leak()
      throw error
    }
    return taken
  }

  /// Unmaps; gives the reference back unless that fails.
  private func retire() -> DMAError? {
    let failure = unsafe core._withUnsafeGuaranteedRef { $0.unmapParts(address, byteCount: byteCount, parts: segments) }
    guard let failure else {
      unsafe core.release()
      return nil
    }
    return unsafe core._withUnsafeGuaranteedRef { $0.leaked(failure, "unmap(list)", address, byteCount) }
  }
}
