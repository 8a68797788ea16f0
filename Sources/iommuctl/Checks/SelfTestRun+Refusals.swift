import IOMMU

/// What must be refused, and the memory that the library keeps.
extension SelfTestRun {
  func testRefusals() {
    recorder.run("limits") { try limits() }
    recorder.run("overlap") {
      let memory = try Pages(2 * page), address = try freeAddress(2 * page)
      let mapping = try unsafe dma.map(unsafe: memory.bytes, .bidirectional, at: address)
      let other = try Pages(page)
      let error = try requireRefusal(.overlap, of: "An overlapping mapping") { () throws(DMAError) in
        _ = try unsafe dma.map(unsafe: other.bytes, .bidirectional, at: address + page)
      }
      let range = IOVARange(start: address, byteCount: UInt64(2 * page))!
      try require(
        error.detail?.contains(range.description) == true, "The error does not name \(range): \(error)")
      try mapping.unmap()
      return "refused, and both ranges named"
    }
    recorder.run("reserved") { try reserved() }
  }

  private func limits() throws -> String {
    let memory = try Pages(2 * page), page = page, dma = dma
    let usable = dma.usableRanges
    func refuse(
      _ codes: DMAError.Code..., what: String, _ part: Range<Int>, at address: IOVA? = nil
    ) throws {
      do throws(DMAError) {
        _ = try unsafe dma.map(
          unsafe: UnsafeRawBufferPointer(rebasing: memory.bytes[part]), .bidirectional, at: address)
      } catch {
        if codes.contains(error.code) { return }
        throw CaseStop.failed("\(what) was refused for another reason: \(error)")
      }
      throw CaseStop.failed("\(what) was accepted")
    }
    try refuse(.empty, what: "An empty mapping", 0..<0)
    try refuse(.unaligned, what: "Half a page", 0..<page / 2)
    try refuse(.unaligned, what: "Memory that begins within a page", 8..<page + 8)
    try refuse(.overflow, what: "A mapping over the end", 0..<2 * page, at: IOVA(0 &- UInt64(page)))
    try refuse(.outsideAperture, .reserved, what: "Page 0", 0..<page, at: IOVA(0))
    let last = usable[usable.count - 1].last.rawValue
    if last < .max - UInt64(2 * page) {
      try refuse(
        .outsideAperture, .outsideMask, .reserved, what: "A mapping above the aperture", 0..<page,
        at: IOVA(last + 1))
    }
    if dma.mask.bitCount < 64, dma.mask.limit < last {
      try refuse(
        .outsideMask, .outsideAperture, .reserved, what: "A mapping above the mask", 0..<page,
        at: IOVA(dma.mask.limit + 1))
    }
    try require(dma.statistics.liveMappings == 0, "A refused mapping is counted as live")
    return "empty, unaligned, overflowing and outside mappings are refused; usable: \(usable)"
  }

  private func reserved() throws -> String {
    guard let group = found.group else { throw CaseStop.skipped("the device has no group") }
    let regions = try machine.host.reservedRegions(ofGroup: group).regions
    let memory = try Pages(page)
    var refused: [String] = []
    for region in regions {
      guard let start = region.range.start.alignedUp(to: dma.granule), start <= dma.mask.range.last else {
        continue
      }
      try requireRefusal(.reserved, .outsideAperture, of: "A mapping in \(region.range)") {
        () throws(DMAError) in
        _ = try unsafe dma.map(unsafe: memory.bytes, .bidirectional, at: start)
      }
      refused.append("\(region.range) (\(region.type))")
    }
    if refused.isEmpty { throw CaseStop.skipped("no reserved region is within the device's reach") }
    return "refused in \(refused.joined(separator: ", "))"
  }

  // MARK: - Memory of the library's own

  func testMemory() {
    recorder.run("arena") {
      let array = try dma.allocate(UInt64.self, count: 1024)
      try require((0..<array.count).allSatisfy { array[$0] == 0 }, "The memory is not zero")
      let last = array.address(of: array.count - 1)
      try require(array.address.isAligned(to: dma.granule), "\(array.address) is not on a page")
      try require(last.rawValue <= dma.mask.limit, "\(last) is above the mask")
      try unsafe require(
        dma.translate(array.address, byteCount: array.byteCount) == array.unsafeBaseAddress,
        "It translates to elsewhere")
      let statistics = dma.statistics
      return
        "\(array.byteCount) bytes at \(array.address); \(statistics.coherentArenaBytes) bytes mapped in \(counted(statistics.arenaAreas, "area")), \(statistics.arenaFileAreas) of them by file"
    }
    recorder.run("list") {
      let before = dma.statistics
      var list = ScatterList()
      for index in 1...3 { list.append(try dma.buffer(byteCount: index * page - 1)) }
      let isKernels = device.translation.owner == .kernel
      let mapped = try dma.map(list, .toDevice)
      let segments = mapped.segments, end = mapped.address + mapped.byteCount
      try require(mapped.byteCount == 6 * page, "The list takes \(mapped.byteCount) bytes")
      try require(
        zip(segments, segments.dropFirst()).allSatisfy { $0.address < $1.address },
        "The segments' addresses do not rise")
      try require(segments.allSatisfy { $0.address + $0.byteCount <= end }, "A segment leaves the range")
      _ = try mapped.unmap()
      let calls = dma.statistics.systemCalls - before.systemCalls
      // Neighbours go together; tables of the process take no call to map.
      let expected = isKernels ? 2...4 : 1...1 as ClosedRange<UInt64>
      try require(expected.contains(calls), "\(counted(calls, "system call")) for 3 maps and an unmap")
      return "3 buffers in one range of \(6 * page) bytes, unmapped by one call"
    }
  }
}
