import AddressSpace
import IOMMU

// iommufd: the maps of an IOAS. Rules of `drivers/iommu/iommufd/{ioas,io_pagetable,pages}.c`.

extension KernelState {
  func ioasRanges(_ descriptor: Int32, ioas id: UInt32) throws(Errno) -> IOASRanges {
    let ioas = try ioas(descriptor, id)
    let free = Span64.complement(of: ioas.reserved.map(\.span), in: Span64(start: 0, last: .max))
    return IOASRanges(ranges: free.map(\.range), alignment: ioas.alignment)
  }

  func ioasAllow(_ descriptor: Int32, ioas id: UInt32, ranges: [IOVARange]) throws(Errno) {
    let ioas = try ioas(descriptor, id)
    var spans: [Span64] = []
    for range in ranges {
      let span = Span64(start: range.start.rawValue, last: range.last.rawValue)
      guard span.start < span.last, !spans.contains(where: { $0.overlaps(span) }) else {
        throw .invalidArgument
      }
      spans.append(span)
    }
    guard !spans.contains(where: ioas.isReserved) else { throw .addressInUse }
    ioas.allowed = spans
  }

  /// What IOAS_MAP and IOAS_MAP_FILE check before they look for the IOAS, in the kernel's order.
  private func checkMap(flags: UInt32, byteCount: UInt64, iova: UInt64) throws(Errno) {
    guard flags & ~(IOASMapFlags.fixed | IOASMapFlags.writable | IOASMapFlags.readable) == 0 else {
      throw .notSupported
    }
    guard iova < .max, byteCount < .max else { throw .overflow }
    guard flags & (IOASMapFlags.writable | IOASMapFlags.readable) != 0 else { throw .invalidArgument }
  }

  func ioasMap(
    _ descriptor: Int32, ioas id: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 {
    let context = try iommufdContext(descriptor)
    _ = context
    try checkMap(flags: flags, byteCount: byteCount, iova: iova)
    let ioas = try ioas(descriptor, id)
    guard !address.addingReportingOverflow(byteCount).overflow else { throw .overflow }
    let memory = PinnedMemory(address: address, byteCount: byteCount)
    return try map(memory, flags: flags, at: iova, addressForFit: address, in: ioas)
  }

  func ioasMapFile(
    _ descriptor: Int32, ioas id: UInt32, flags: UInt32, file: Int32, start: UInt64, byteCount: UInt64,
    iova: UInt64
  ) throws(Errno) -> UInt64 {
    _ = try iommufdContext(descriptor)
    guard machine.mapsFiles else { throw .notTypewriter }
    try checkMap(flags: flags, byteCount: byteCount, iova: iova)
    let ioas = try ioas(descriptor, id)
    guard byteCount > 0 else { throw .invalidArgument }
    guard !start.addingReportingOverflow(byteCount - 1).overflow else { throw .overflow }
    let memory = try PinnedMemory(
      file: file, pageByteCount: self.memory.files[file] ?? 4096, start: start, byteCount: byteCount,
      isWritable: flags & IOASMapFlags.writable != 0)
    return try map(memory, flags: flags, at: iova, addressForFit: start, in: ioas)
  }

  private func map(
    _ memory: PinnedMemory, flags: UInt32, at iova: UInt64, addressForFit: UInt64, in ioas: IOAS
  ) throws(Errno) -> UInt64 {
    let byteCount = memory.byteCount
    guard byteCount != 0, byteCount & (ioas.alignment - 1) == 0 else { throw .invalidArgument }
    var start = iova
    if flags & IOASMapFlags.fixed == 0 {
      start = try ioas.lowestFit(address: addressForFit, byteCount: byteCount)
    } else {
      try checkPlace(start, byteCount: byteCount, in: ioas)
    }
    guard addressForFit & 4095 & (ioas.alignment - 1) == 0 else { throw .invalidArgument }
    let span = Span64(start: start, last: start + (byteCount - 1))
    var permissions: SimulatedIOMMU.Permissions = []
    if flags & IOASMapFlags.readable != 0 { permissions.insert(.read) }
    if flags & IOASMapFlags.writable != 0 { permissions.insert(.write) }
    for table in ioas.pageTables { try checkAccess(permissions, in: table) }
    let area = IOAS.Area(memory, permissions, memoryLock.iommufdAccount)
    if !ioas.pageTables.isEmpty {
      try pin(area)
      for table in ioas.pageTables { enter(area, span, in: table) }
    }
    ioas.areas.insert(span.start, through: span.last, area)
    areaCount += 1
    return start
  }

  /// The rules for a place that the caller chose.
  private func checkPlace(_ iova: UInt64, byteCount: UInt64, in ioas: IOAS) throws(Errno) {
    guard iova & (ioas.alignment - 1) == 0 else { throw .invalidArgument }
    let (last, overflow) = iova.addingReportingOverflow(byteCount - 1)
    guard !overflow else { throw .overflow }
    guard !ioas.isReserved(Span64(start: iova, last: last)) else { throw .invalidArgument }
    guard ioas.areas.first(in: iova, through: last) == nil else { throw .exists }
  }

  /// Unmaps every area inside a range. An area that the range cuts stops it with ENOENT; those before stay unmapped.
  func ioasUnmap(_ descriptor: Int32, ioas id: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno)
    -> UInt64
  {
    let ioas = try ioas(descriptor, id)
    let isAll = iova == 0 && byteCount == .max
    if !isAll {
      guard iova < .max, byteCount < .max else { throw .overflow }
      guard byteCount > 0 else { throw .invalidArgument }
      guard !iova.addingReportingOverflow(byteCount - 1).overflow else { throw .overflow }
    }
    let span = isAll ? Span64(start: 0, last: .max) : Span64(start: iova, last: iova + (byteCount - 1))
    var unmapped: UInt64 = 0
    if span == Span64(start: 0, last: .max) {
      for area in ioas.areas.removeAll().reversed() { unmapped += unmap(area, in: ioas) }
      return unmapped
    }
    while let area = ioas.areas.first(in: span.start, through: span.last) {
      guard span.contains(Span64(start: area.start, last: area.last)) else { throw .noEntry }
      ioas.areas.remove(startingAt: area.start)
      unmapped += unmap(area, in: ioas)
    }
    guard unmapped > 0 else { throw .noEntry }
    return unmapped
  }

  private func unmap(_ area: AreaMap<IOAS.Area>.Area, in ioas: IOAS) -> UInt64 {
    for table in ioas.pageTables { iommu!.unmap(table.domain, startingAt: area.start, freesTables: true) }
    drop(area.value)
    return area.byteCount
  }
}

// MARK: - Pins

extension KernelState {
  /// Pins an area's memory unless it is: EFAULT where there is none, ENOMEM over the limit.
  func pin(_ area: IOAS.Area) throws(Errno) {
    guard !area.isPinned else { return }
    let pages = area.memory.pageCount
    if !memoryLock.exceeds(pages, on: area.account) {
      try area.memory.faultIn(forWriting: area.permissions.contains(.write))
    }
    try memoryLock.pin(pages, on: area.account)
    memory.pin(area.memory)
    area.isPinned = true
  }

  func unpin(_ area: IOAS.Area) {
    guard area.isPinned else { return }
    memoryLock.unpin(area.memory.pageCount, from: area.account)
    memory.unpin(area.memory)
    area.isPinned = false
  }

  /// An area goes for good.
  func drop(_ area: IOAS.Area) {
    unpin(area)
    areaCount -= 1
  }
}

extension Span64 {
  var range: IOVARange { IOVARange(start: IOVA(start), last: IOVA(last))! }
}
