extension RangeStore {
  /// Which of the fitting addresses is chosen.
  package enum Direction: Sendable {
    /// The highest, as Linux does: the first address is the highest that a device will ever get, so one that
    /// cannot drive its bits fails at once.
    case topDown
    /// The lowest.
    case bottomUp
  }

  /// What a range must satisfy.
  package struct Request: Sendable {
    /// The length in bytes: a multiple of the granule, not 0.
    package var byteCount: UInt64
    /// The start is a multiple of it, and of the granule. `nil` stands for natural alignment: the length
    /// rounded up to a power of two, as in Linux.
    package var alignment: PageSize?
    /// The highest address that may be used, inside.
    package var limit: UInt64
    /// The lowest address that may be used.
    package var lowest: UInt64
    /// The range must not cross a multiple of it.
    package var boundary: PageSize?
    /// Which of the fitting addresses is chosen.
    package var direction: Direction

    package init(
      byteCount: UInt64, alignment: PageSize? = nil, limit: UInt64 = .max, lowest: UInt64 = 0,
      boundary: PageSize? = nil, direction: Direction = .topDown
    ) {
      self.byteCount = byteCount
      self.alignment = alignment
      self.limit = limit
      self.lowest = lowest
      self.boundary = boundary
      self.direction = direction
    }
  }

  /// Chooses an address and occupies the range.
  ///
  /// - Throws: `empty`, `unaligned`, `boundaryTooSmall`, `noSpace`, `fragmented`, `outOfMemory`.
  /// - Complexity: O(log n), see ``RangeStore``. ``allocateAgain(byteCount:alignment:limit:tag:)`` may know the answer.
  package func allocate(
    _ request: Request, kind: Kind = .allocation, tag: UInt64 = 0, auxiliary: UInt32 = 0
  ) throws(RangeStoreFailure) -> IOVA {
    let fit = try fit(request)
    switch unsafe changingTiles.pointee.allocate(fit, kind: kind, tag: tag, auxiliary: auxiliary) {
    case .placed(let start):
      let address = IOVA(start &<< UInt64(granule.shift))
      if kind == .allocation, auxiliary == 0 {
        unsafe last.pointee = LastAllocation(request, start: address, tag: tag)
      }
      return address
    case .noSpace: throw .noSpace
    case .fragmented: throw .fragmented
    case .outOfMemory: throw .outOfMemory
    }
  }

  /// A request in granules.
  private func fit(_ request: Request) throws(RangeStoreFailure) -> Fit {
    guard request.byteCount != 0 else { throw .empty }
    guard granule.isAligned(request.byteCount) else { throw .unaligned }
    let shift = UInt64(granule.shift)
    // Above 2⁶³ no power of two is left to align to; nothing of that size fits beside page 0 anyway.
    guard let natural = PageSize(fitting: request.byteCount) else { throw .noSpace }
    let alignment = request.alignment ?? natural
    var fit = Fit(
      size: request.byteCount &>> shift, alignmentMask: alignment.mask &>> shift, boundaryMask: .max,
      low: (request.lowest &>> shift) + (granule.isAligned(request.lowest) ? 0 : 1),
      high: (request.limit &>> shift) + (request.limit & granule.mask == granule.mask ? 1 : 0),
      isTopDown: request.direction == .topDown)
    if let boundary = request.boundary {
      guard boundary.byteCount >= request.byteCount else { throw .boundaryTooSmall }
      fit.boundaryMask = boundary.mask &>> shift
    }
    return fit
  }
}

// MARK: - Room that is left

extension RangeStore {
  /// The largest length in bytes for which an allocation with natural alignment would succeed in a window;
  /// all smaller ones would as well. At most 2⁶³; 0 when the window has no free granule.
  ///
  /// - Complexity: O(log n). For the whole space, and for all of it below 4 GiB as long as nothing is
  ///   allocated there, O(1).
  package func largestFreeByteCount(limit: UInt64 = .max, lowest: UInt64 = 0) -> UInt64 {
    let shift = UInt64(granule.shift)
    let first = (lowest &>> shift) + (granule.isAligned(lowest) ? 0 : 1)
    let end = (limit &>> shift) + (limit & granule.mask == granule.mask ? 1 : 0)
    // No length above 2⁶³ has a natural alignment.
    return unsafe min(tiles.pointee.largestCapacity(from: first, to: end), 1 << (63 - shift)) << shift
  }

  /// The largest power of two, as an exponent of bytes, that an allocation with natural alignment
  /// would get in a window; `nil` when the window has no free granule.
  ///
  /// - Complexity: As ``largestFreeByteCount(limit:lowest:)``.
  package func largestFreeOrder(limit: UInt64 = .max, lowest: UInt64 = 0) -> Int? {
    let byteCount = largestFreeByteCount(limit: limit, lowest: lowest)
    return byteCount == 0 ? nil : 63 - byteCount.leadingZeroBitCount
  }
}
