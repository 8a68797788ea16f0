public import AddressSpace
import Synchronization

/// What a device can take of a scatter list, beside its address mask.
///
/// ```swift
/// // At most 32 segments of 64 KiB each, none across a multiple of 64 KiB.
/// let size = PageSize(shift: 16)
/// try device.dma.setConstraints(
///   DMAConstraints(maxSegmentCount: 32, maxSegmentByteCount: Int(size.byteCount), boundary: size))
/// ```
///
/// ``DMADomain/map(_:_:)-(ScatterList,_)`` places and joins buffers so that all of them hold; coherent arrays and
/// reservations keep to ``boundary`` and ``alignment``. Without constraints, which is the default, buffers that follow each
/// other without a gap become one segment. Where pages end, joining ends: buffers whose lengths are multiples of
/// ``DMADomain/granule`` join (the corresponding kernel call is `dma_get_merge_boundary`).
public struct DMAConstraints: Hashable, Sendable {
  /// How many segments the device takes in one list. The corresponding kernel field is the queue limit `max_segments`.
  public var maxSegmentCount: Int
  /// How long a segment may be, in bytes. The corresponding kernel call is `dma_set_max_seg_size`.
  public var maxSegmentByteCount: Int
  /// No segment crosses a multiple of it; nil where the device does not care. The corresponding kernel call is
  /// `dma_set_seg_boundary`, which takes the mask.
  public var boundary: PageSize?
  /// Every segment begins on a multiple of it. The corresponding kernel call is `dma_set_min_align_mask`, which takes
  /// the mask.
  public var alignment: PageSize

  /// Constraints; what is left out is none.
  public init(
    maxSegmentCount: Int = .max, maxSegmentByteCount: Int = .max, boundary: PageSize? = nil,
    alignment: PageSize = PageSize(shift: 0)
  ) {
    (self.maxSegmentCount, self.maxSegmentByteCount) = (maxSegmentCount, maxSegmentByteCount)
    (self.boundary, self.alignment) = (boundary, alignment)
  }

  /// What makes no sense about them, nil when they do.
  var contradiction: String? {
    if maxSegmentCount < 1 { return "A device takes one segment at least, not \(maxSegmentCount)" }
    if maxSegmentByteCount < 1 { return "A segment has one byte at least, not \(maxSegmentByteCount)" }
    if UInt64(maxSegmentByteCount) < alignment.byteCount {
      return "A segment of at most \(maxSegmentByteCount) bytes cannot be followed by one on a multiple of \(alignment)"
    }
    if let boundary, boundary < alignment {
      return "A segment on a multiple of \(alignment) crosses one of \(boundary)"
    }
    return nil
  }

  /// What a range of so many bytes asks of the address space: it begins on a multiple of the boundary, or is short
  /// enough to lie between two.
  func request(byteCount: UInt64, alignment: PageSize) -> RangeStore.Request {
    let aligned = max(alignment, self.alignment)
    guard let boundary else { return RangeStore.Request(byteCount: byteCount, alignment: aligned) }
    return byteCount <= boundary.byteCount
      ? RangeStore.Request(byteCount: byteCount, alignment: aligned, boundary: boundary)
      : RangeStore.Request(byteCount: byteCount, alignment: max(aligned, boundary))
  }
}

extension DMADomain {
  /// Says what the device of this value can take of a list. The next list keeps to it; lists that are mapped stay as they
  /// are, as do coherent arrays.
  ///
  /// Devices that share a domain have constraints of their own each.
  ///
  /// - Throws: `.invalidArgument` for constraints that no segment meets; `.forked`.
  public func setConstraints(_ constraints: DMAConstraints) throws(DMAError) {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "setConstraints").on(deviceName) }
    if let contradiction = constraints.contradiction {
      throw DMAError(.invalidArgument, "setConstraints", device: deviceName, detail: contradiction)
    }
    segmentRules.withLock { $0 = constraints }
  }

  /// The constraints set last; none in a fork of the process that opened the device.
  public var constraints: DMAConstraints {
    // The lock may have been held by a thread that a fork does not have.
    ProcessGuard.isOwner ? segmentRules.withLock { $0 } : DMAConstraints()
  }
}
