import AddressSpace

/// What goes at the end: everything, by calls none of which is long.
extension Stage2 {
  /// Takes everything out, once no device is attached, which costs no invalidation: areas of 32 MiB, or of 128 MiB on huge pages, each
  /// by a call of its own, and what is shorter together, up to as much and to ``Limits/rangesOfACall`` at once. What a call refused
  /// goes with the last one, which is of everything.
  ///
  /// - Complexity: O(n log n) in the ranges of registered memory.
  func takeOutAll() {
    var from: UInt64 = 0, run = Run()
    while let taken = memory.next(from: from) {
      if let area = taken.area {
        unmap(&run)
        takeOut(taken.range, area)
      } else {
        if !run.add(taken.range) {
          unmap(&run)
          _ = run.add(taken.range)
        }
      }
      guard let next = taken.range.last.advanced(by: 1) else { break }
      from = next.rawValue
    }
    unmap(&run)
    _ = try? unmap(0, .max)
  }

  /// Area by area, as far as there are any: of what is reserved for tables only the beginning is in use.
  private func takeOut(_ range: IOVARange, _ area: UInt64) {
    var done: UInt64 = 0
    while done < range.byteCount {
      let length = min(area, range.byteCount - done)
      guard (try? unmap(range.start.rawValue + done, length)) == length else { return }
      done += length
    }
  }

  private func unmap(_ run: inout Run) {
    if let range = run.range { _ = try? unmap(range.start.rawValue, range.byteCount) }
    run = Run()
  }

  /// Ranges that one call takes out, each of which one call has entered, with nothing between them.
  private struct Run {
    var range: IOVARange?
    private var byteCount: UInt64 = 0, count = 0

    /// False where it would be too much for one call.
    mutating func add(_ more: IOVARange) -> Bool {
      guard let range else {
        (range, byteCount, count) = (more, more.byteCount, 1)
        return true
      }
      guard count < Limits.rangesOfACall, byteCount + more.byteCount <= UInt64(Limits.areaByteCount) else {
        return false
      }
      self.range = IOVARange(start: range.start, last: more.last)
      (byteCount, count) = (byteCount + more.byteCount, count + 1)
      return true
    }
  }
}
