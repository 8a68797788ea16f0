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
    // An unmap that fails is counted by the core; the memory then stays out of use (`retire` leaks it).
    if list != nil { _ = retire(&list) }
  }

  /// Takes all buffers back from the device with one kernel call.
  ///
  /// - Throws: As ``Mapping/unmap()``; the memory of the whole list is leaked then, and counted.
  public consuming func unmap() throws(DMAError) -> ScatterList {
    if let error = retire(&list) { throw error }
    return list.take()!
  }

  /// Unmaps once; on failure the list is given up.
  private func retire(_ list: inout ScatterList?) -> DMAError? {
    let failure = unsafe core._withUnsafeGuaranteedRef { $0.unmapParts(address, byteCount: byteCount, parts: segments) }
    guard let failure else { return nil }
    let error = unsafe core._withUnsafeGuaranteedRef { $0.leaked(failure, "unmap(list)", address, byteCount) }
    list.take()?.leak()
    return error
  }
}
