package import PageTables

/// The commands for a gather: what an SMMUv3 has to be told after an unmap.
///
/// They are made first and counted then. What does not fit the budget becomes one command for the whole address space, which is
/// right whatever the gather has; so the budget is a matter of speed alone, and no threshold is tuned. The kernel's command
/// queue takes a round of 63 commands and a sync from a process at a time.
@safe
package struct SMMUPlan: ~Copyable {
  /// The most commands of a round: `CMDQ_BATCH_ENTRIES` less the sync.
  package static var roundLength: Int { 63 }

  private var commands = InlineArray<63, SMMUCommand>(repeating: SMMUCommand(low: 0, high: 0))
  /// How many there are.
  package private(set) var count = 0
  /// Whether the whole address space is invalidated.
  package private(set) var isEverything = false
  private let shape: Shape

  /// What commands depend on beside the gather.
  package struct Shape: Hashable, Sendable {
    package var asid: UInt16
    /// The shift of the granule.
    package var granule: UInt8
    /// `IDR3.RIL`.
    package var hasRanges: Bool

    package init(asid: UInt16, granule: UInt8, hasRanges: Bool) {
      (self.asid, self.granule, self.hasRanges) = (asid, granule, hasRanges)
    }
  }

  package init(_ shape: Shape) { self.shape = shape }

  /// Of commands as they are, right or wrong; no more than a round has. For tests.
  package init(_ shape: Shape, commands list: [SMMUCommand]) {
    self.shape = shape
    for command in list {
      commands[count] = command
      count += 1
    }
  }

  /// The commands as they are sent.
  @inline(__always)
  package func withBytes<Result>(
    _ body: (UnsafeRawBufferPointer) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    try unsafe commands.span.withUnsafeBytes { bytes throws(Errno) in
      try unsafe body(UnsafeRawBufferPointer(rebasing: bytes[..<(count * 16)]))
    }
  }

  package subscript(index: Int) -> SMMUCommand { commands[index] }

  /// Whether kernel and hardware take every command for what they are, whatever this was made for:
  /// ``SMMUCommand/isValid(asid:hasRanges:)``.
  package func isValid(as shape: Shape) -> Bool {
    for index in 0..<count where !commands[index].isValid(asid: shape.asid, hasRanges: shape.hasRanges) { return false }
    return true
  }
}

extension SMMUPlan {
  /// Everything of the address space.
  package mutating func makeEverything() {
    commands[0] = .addressSpace(shape.asid)
    (count, isEverything) = (1, true)
  }

  /// The commands for what an unmap gathered, at most `budget` of them.
  package mutating func make(for gather: borrowing Gather, budget: Int) {
    (count, isEverything) = (0, false)
    guard !gather.isEverything else { return makeEverything() }
    let limit = min(budget, Self.roundLength)
    for index in 0..<gather.count {
      let run = gather[index]
      guard
        append(run.start, run.byteCount, leafShift: run.leafShift, leafOnly: gather.isLeafOnly, limit: limit)
      else { return makeEverything() }
    }
  }

  /// The commands for a range of which neither the leaves nor the tables are known.
  package mutating func make(forAnythingIn start: UInt64, _ byteCount: UInt64, budget: Int) {
    (count, isEverything) = (0, false)
    let limit = min(budget, Self.roundLength)
    guard append(start, byteCount, leafShift: nil, leafOnly: false, limit: limit) else { return makeEverything() }
  }

  /// The same command so many times, to time it.
  mutating func repeatPage(_ address: UInt64, count: Int) {
    (self.count, isEverything) = (min(count, Self.roundLength), false)
    for index in 0..<self.count { commands[index] = .page(address, shape.asid, leafOnly: true) }
  }

  /// False when there is no room within the limit.
  private mutating func append(
    _ start: UInt64, _ byteCount: UInt64, leafShift: UInt8?, leafOnly: Bool, limit: Int
  ) -> Bool {
    shape.hasRanges
      ? appendRanges(start, byteCount, leafShift: leafShift, leafOnly: leafOnly, limit: limit)
      : appendPages(start, byteCount, leafShift ?? shape.granule, leafOnly: leafOnly, limit: limit)
  }

  /// Without range commands: one a leaf.
  private mutating func appendPages(
    _ start: UInt64, _ byteCount: UInt64, _ shift: UInt8, leafOnly: Bool, limit: Int
  ) -> Bool {
    let size = UInt64(1) << UInt64(shift), leaves = (byteCount + (size - 1)) >> UInt64(shift)
    guard leaves <= UInt64(limit - count) else { return false }
    for index in 0..<leaves {
      commands[count] = .page(start + index * size, shape.asid, leafOnly: leafOnly)
      count += 1
    }
    return true
  }

  /// As `arm_smmu_cmdq_batch_add_range` of `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`: each command takes up to five
  /// significant bits of the number of granules, from the lowest.
  private mutating func appendRanges(
    _ start: UInt64, _ byteCount: UInt64, leafShift: UInt8?, leafOnly: Bool, limit: Int
  ) -> Bool {
    let granule = shape.granule
    var left = (byteCount + (UInt64(1) << UInt64(granule) - 1)) >> UInt64(granule), address = start
    // A command without level whose NUM and SCALE are 0 is reserved: one granule more is right, if not needed.
    if !leafOnly, left & 31 == 1 { left += 1 }
    let level = leafOnly ? leafShift.map { 4 - ($0 - 3) / (granule - 3) } ?? 0 : 0
    while left > 0 {
      let scale = UInt64(left.trailingZeroBitCount)
      guard count < limit, scale < 32 else { return false }
      let number = left >> scale & 31
      commands[count] = .range(
        address, number: number - 1, scale: scale, granule: granule, level: level, shape.asid, leafOnly: leafOnly)
      count += 1
      address += number << (scale + UInt64(granule))
      left -= number << scale
    }
    return true
  }
}
