import AddressSpace
import AddressSpaceModels
import IOMMU
import IOMMUSimulation
import Testing

/// Random lists under random constraints, each judged by every rule from scratch.
@Suite struct ListModelTests {
  /// What goes into a list: a buffer, or memory of the caller's that begins `offset` bytes into a page.
  private struct Piece {
    var byteCount: Int
    var offset: Int?
  }

  private static func constraints(_ random: inout SplitMix64) -> DMAConstraints {
    var result = DMAConstraints()
    if Bool.random(using: &random) { result.boundary = PageSize(shift: .random(in: 10...18, using: &random)) }
    if Bool.random(using: &random) { result.alignment = PageSize(shift: .random(in: 0...15, using: &random)) }
    if let boundary = result.boundary, boundary < result.alignment { result.alignment = boundary }
    let least = Int(result.alignment.byteCount)
    switch Int.random(in: 0..<4, using: &random) {
    case 0: result.maxSegmentByteCount = .random(in: max(least, 500)...max(least, 70_000), using: &random)
    case 1: result.maxSegmentByteCount = max(least, 4096 * .random(in: 1...20, using: &random))
    case 2: result.maxSegmentByteCount = max(least, 65_535)
    default: break
    }
    return result
  }

  private static func piece(_ random: inout SplitMix64, _ constraints: DMAConstraints) -> Piece {
    var piece = Piece(byteCount: .random(in: 1...100_000, using: &random))
    switch Int.random(in: 0..<4, using: &random) {
    case 0: piece.byteCount = .random(in: 1...4096, using: &random)
    case 1, 2: piece.byteCount = 4096 * .random(in: 1...20, using: &random)
    default: break
    }
    if Int.random(in: 0..<4, using: &random) == 0 {
      let step = Int(constraints.alignment.byteCount)
      piece.offset = step >= 4096 ? 0 : .random(in: 0..<4096 / step, using: &random) * step
      piece.byteCount = min(piece.byteCount, 65_536)
    }
    return piece
  }

  @Test(arguments: 0..<8)
  func everyRuleHolds(_ seed: Int) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 80 << 10, alignment: 4096)
    defer { unsafe memory.deallocate() }
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: seed % 2 == 0 ? .iommufd : .type1)
      let dma = device.dma
      if seed >= 4 { try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, depth: 16))) }
      var random = SplitMix64(seed: UInt64(seed))
      for round in 0..<150 {
        let constraints = Self.constraints(&random)
        try dma.setConstraints(constraints)
        let pieces = (0..<Int.random(in: 1...12, using: &random)).map { _ in Self.piece(&random, constraints) }
        var list = ScatterList(), hosts: [UInt] = []
        for piece in pieces {
          if let offset = piece.offset {
            let part = unsafe UnsafeRawBufferPointer(rebasing: memory[offset..<offset + piece.byteCount])
            hosts.append(UInt(bitPattern: part.baseAddress))
            unsafe list.append(unsafe: part, widening: true)
          } else {
            let buffer = try dma.buffer(byteCount: piece.byteCount)
            hosts.append(TranslateTests.start(buffer))
            list.append(buffer)
          }
        }
        let mapped = try dma.map(list, .bidirectional)
        let wrong = Self.judge(mapped, pieces, hosts, constraints, dma)
        #expect(wrong.isEmpty, "seed \(seed), round \(round): \(wrong) for \(pieces) under \(constraints)")
        _ = try mapped.unmap()
        #expect(dma.statistics.liveBytes == 0 && dma.statistics.leakedBytes == 0)
      }
      device.close()
    }
    #expect(machine.isClean)
  }

  /// The rules that do not hold.
  private static func judge(
    _ mapped: borrowing MappedList, _ pieces: [Piece], _ hosts: [UInt], _ constraints: DMAConstraints, _ dma: DMADomain
  ) -> [String] {
    var wrong: [String] = []
    let segments = mapped.segments.map { (start: $0.address.rawValue, end: $0.address.rawValue + UInt64($0.byteCount)) }
    let first = mapped.address.rawValue, last = first + UInt64(mapped.byteCount)
    if segments.count != mapped.segmentCount { wrong.append("the count of segments") }
    func crosses(_ start: UInt64, _ end: UInt64) -> Bool {
      constraints.boundary.map { $0.alignedDown(start) != $0.alignedDown(end - 1) } ?? false
    }
    for (start, end) in segments {
      if start >= end || start < first || end > last { wrong.append("a segment outside of the range") }
      if crosses(start, end) { wrong.append("a segment over the boundary") }
      if end - start > UInt64(constraints.maxSegmentByteCount) { wrong.append("a segment too long") }
      if !constraints.alignment.isAligned(start) { wrong.append("a segment not aligned") }
    }
    for (left, right) in zip(segments, segments.dropFirst()) {
      if right.start < left.end { wrong.append("segments that overlap or fall") }
      let fits = right.end - left.start <= UInt64(constraints.maxSegmentByteCount) && !crosses(left.start, right.end)
      if left.end == right.start, left.end % 4096 == 0, fits { wrong.append("two segments that could be one") }
    }
    // What the segments cover, end to end, is the pieces' bytes in order.
    var rest = segments[...]
    for (index, piece) in pieces.enumerated() {
      var at = mapped.address(ofBufferAt: index).rawValue
      let end = at + UInt64(piece.byteCount)
      if at % 4096 != UInt64(piece.offset ?? 0) { wrong.append("the offset in the page of \(index)") }
      while at < end, let segment = rest.first {
        if segment.start != at { wrong.append("a gap before \(index)") }
        at = min(segment.end, end)
        rest[rest.startIndex].start = at
        if at == segment.end { rest.removeFirst() }
      }
      if at != end { wrong.append("\(index) is not covered") }
      let found = unsafe UInt(
        bitPattern: dma.translate(IOVA(end - UInt64(piece.byteCount)), byteCount: piece.byteCount))
      if found != hosts[index] { wrong.append("\(index) leads elsewhere") }
      // A piece that fits into one segment is in one.
      let isShort = piece.byteCount <= constraints.maxSegmentByteCount
      let start = end - UInt64(piece.byteCount)
      if isShort, !crosses(start, end), !segments.contains(where: { $0.start <= start && end <= $0.end }) {
        wrong.append("\(index) is cut for nothing")
      }
    }
    if !rest.isEmpty { wrong.append("segments behind the end") }
    return wrong
  }
}
