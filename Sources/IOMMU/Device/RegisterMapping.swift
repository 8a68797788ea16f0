import CIOMMU

/// A part of a BAR that is mapped into this process.
@safe
struct RegisterMapping: @unchecked Sendable {
  /// Offsets in the BAR.
  let range: Range<Int>
  let base: UnsafeMutableRawPointer

  /// Whether a whole access lies inside.
  @inline(__always)
  func holds(_ offset: Int, _ width: Int) -> Bool {
    offset >= range.lowerBound && offset + width <= range.upperBound
  }

  /// Maps what the kernel offers of a region, all of it or nothing on failure.
  static func make(of region: VFIORegionInfo, _ handle: DeviceHandle) throws(DMAError) -> [RegisterMapping] {
    var made: [RegisterMapping] = []
    do throws(DMAError) {
      for range in region.mappableRanges(pageSize: ci_page_size()) {
        made.append(try RegisterMapping(range, region, handle))
      }
    } catch {
      for mapping in made { mapping.remove(handle.kernel) }
      throw error
    }
    return made
  }

  private init(_ range: Range<Int>, _ region: VFIORegionInfo, _ handle: DeviceHandle) throws(DMAError) {
    let kernel = handle.kernel
    self.range = range
    do throws(DMAError) {
      unsafe base = try handle.use("mmap") { descriptor throws(Errno) in
        let offset = region.offset + UInt64(range.lowerBound)
        return unsafe UnsafeAddress(
          try kernel.mapMemory(byteCount: range.count, descriptor: descriptor, offset: offset))
      }.pointer
    } catch {
      throw error.about(region, range)
    }
    do throws(Errno) {
      // A fork that held the BAR would keep the device open after this process has closed it.
      try unsafe kernel.advise(base, byteCount: range.count, .dontFork)
    } catch {
      remove(kernel)
      throw DMAError.deviceCall("madvise", error, handle.name).about(region, range)
    }
  }

  func remove(_ kernel: any Kernel) { unsafe kernel.unmapMemory(base, byteCount: range.count) }

  /// Puts private memory in its place. Without memory for that the mapping stays until ``remove(_:)``.
  func cover(_ kernel: any Kernel) { try? unsafe kernel.coverMemory(base, byteCount: range.count) }
}

/// A pointer as a result of a generic call.
@safe private struct UnsafeAddress {
  let pointer: UnsafeMutableRawPointer
  init(_ pointer: UnsafeMutableRawPointer) { unsafe self.pointer = pointer }
}

extension DMAError {
  fileprivate func about(_ region: VFIORegionInfo, _ range: Range<Int>) -> DMAError {
    var error = self
    error.address = UInt64(range.lowerBound)
    error.byteCount = UInt64(range.count)
    error.detail = "\(region.name) could not be mapped; the address is the offset in it"
    return error
  }
}

extension VFIORegionInfo {
  /// What messages call the region.
  var name: String {
    switch index {
    case 0..<VFIOPCI.rom: "BAR \(index)"
    case VFIOPCI.rom: "expansion ROM"
    case VFIOPCI.config: "config space"
    default: "region \(index)"
    }
  }

  /// The parts that can be mapped, ordered and apart: all, what SPARSE_MMAP lists (inwards to whole pages, since a
  /// page's other part is not to be reached), or none.
  package func mappableRanges(pageSize: UInt64) -> [Range<Int>] {
    guard canMap, canRead, canWrite, let end = Int(exactly: byteCount), offset % pageSize == 0 else {
      return []
    }
    guard let sparse else { return [0..<end] }
    var ranges: [Range<Int>] = []
    for part in sparse.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      let (up, overflow) = part.lowerBound.addingReportingOverflow(pageSize - 1)
      if overflow { break }
      let lower = max(up / pageSize * pageSize, UInt64(ranges.last?.upperBound ?? 0))
      let upper = part.upperBound >= byteCount ? byteCount : part.upperBound / pageSize * pageSize
      if lower < upper { ranges.append(Int(lower)..<Int(upper)) }
    }
    return ranges
  }
}
