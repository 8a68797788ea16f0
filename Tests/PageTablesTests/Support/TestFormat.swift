import AddressSpace
import PageTables

/// A format in one geometry: how to make its tables, and how the manual reads them.
struct TestFormat: Sendable, CustomStringConvertible {
  let name: String
  let granule: PageSize
  let last: UInt64
  /// What the sizes of leaves should be, as a bitmap.
  let pageSizes: UInt64
  /// Whether an entry can forbid reading, and tell registers from memory.
  var hasWriteOnly = false, hasDevice = false
  /// The highest address that it can lead to.
  let lastOutput: UInt64
  let levels: @Sendable () -> [ReaderLevel]
  let make: @Sendable (TablePool) -> TestTable?

  var description: String { name }

  /// The size of leaves above the pages.
  var block: UInt64 {
    pageSizes & (pageSizes - 1) == 0
      ? regionByteCount : PageSizes(rawValue: pageSizes & (pageSizes - 1)).smallest!.byteCount
  }
  /// What one table of the lowest level covers.
  var regionByteCount: UInt64 { granule.byteCount * granule.byteCount / 8 }

  /// What of some attributes an entry can say.
  func expressible(_ attributes: LeafAttributes) -> LeafAttributes {
    var attributes = attributes
    if !hasWriteOnly { attributes.insert(.readable) }
    if !hasDevice { attributes.remove(.device) }
    return attributes
  }

  static let all: [TestFormat] = [
    smmu(12, 39, blocks: 1 << 21 | 1 << 30), smmu(12, 48, blocks: 1 << 21 | 1 << 30),
    smmu(14, 39, blocks: 1 << 25), smmu(14, 48, blocks: 1 << 25),
    smmu(16, 39, blocks: 1 << 29), smmu(16, 48, blocks: 1 << 29),
    firstStage(4, hasGiBLeaves: false), firstStage(4, hasGiBLeaves: true), firstStage(5, hasGiBLeaves: true),
    secondStage(39, [12, 21, 30]), secondStage(48, [12, 21, 30]), secondStage(57, [12, 21, 30]),
    secondStage(48, [12, 21]), secondStage(48, [12]), secondStage(48, [12, 30]),
  ]

  private static func smmu(_ granule: UInt8, _ inputBits: UInt8, blocks: UInt64) -> TestFormat {
    TestFormat(
      name: "SMMU, \(PageSize(shift: granule)), \(inputBits) bits", granule: PageSize(shift: granule),
      last: (1 << UInt64(inputBits)) - 1, pageSizes: 1 << UInt64(granule) | blocks, hasDevice: true,
      lastOutput: (1 << 48) - 1,
      levels: { ArmReader.levels(granule: 1 << UInt64(granule), inputBits: Int(inputBits)) },
      make: { pool in
        guard let table = SMMUTable(pool: pool, inputBits: inputBits) else { return nil }
        return TestTableOf(table)
      })
  }

  private static func firstStage(_ levels: UInt8, hasGiBLeaves: Bool) -> TestFormat {
    TestFormat(
      name: "first stage, \(levels) levels\(hasGiBLeaves ? ", 1 GiB" : "")", granule: .fourKiB,
      last: (1 << (levels == 4 ? 47 : 56)) - 1, pageSizes: 1 << 12 | 1 << 21 | (hasGiBLeaves ? 1 << 30 : 0),
      lastOutput: (1 << 52) - 1,
      levels: { FirstStageReader.levels(Int(levels), hasGiBPages: hasGiBLeaves) },
      make: { pool in
        guard let table = FirstStageTable(pool: pool, levels: levels, hasGiBLeaves: hasGiBLeaves) else { return nil }
        return TestTableOf(table)
      })
  }

  private static func secondStage(_ inputBits: UInt8, _ leaves: [Int]) -> TestFormat {
    let sizes = leaves.reduce(0 as UInt64) { $0 | 1 << UInt64($1) }
    return TestFormat(
      name: "second stage, \(inputBits) bits, leaves of \(leaves)", granule: .fourKiB,
      last: (1 << UInt64(inputBits)) - 1, pageSizes: sizes, hasWriteOnly: true, lastOutput: (1 << 52) - 1,
      levels: { SecondStageReader.levels(Int(inputBits), leaves: leaves) },
      make: { pool in
        guard let table = SecondStageTable(pool: pool, inputBits: inputBits, pageSizes: PageSizes(rawValue: sizes))
        else { return nil }
        return TestTableOf(table)
      })
  }
}
