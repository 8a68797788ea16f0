import AddressSpace

/// Tables of any words, as an IOMMU may come to read them: the first byte is the format, and each ten bytes behind it are a word's
/// place and the word.
///
/// The reader ends with leaves or with a complaint, and what it finds at an address is what it found in the whole.
struct TableWords {
  private let reader: TableReader
  private let byteCount: UInt64
  private static let tables = 8

  private static let formats: [(granule: UInt8, levels: [ReaderLevel])] =
    [12, 14, 16].flatMap { shift in
      [39, 48].map { (shift, ArmReader.levels(granule: 1 << UInt64(shift), inputBits: $0)) }
    } + [
      (12, FirstStageReader.levels(4, hasGiBPages: false)), (12, FirstStageReader.levels(5, hasGiBPages: true)),
      (12, SecondStageReader.levels(39, leaves: [12, 21, 30])), (12, SecondStageReader.levels(57, leaves: [12, 21])),
    ]

  init(_ bytes: [UInt8]) {
    let format = Self.formats[Int(bytes.first ?? 0) % Self.formats.count]
    let memory = TestMemory(PageSize(shift: format.granule), tables: Self.tables)
    byteCount = memory.byteCount
    var rest = bytes.dropFirst()
    while rest.count >= 10 {
      let place = Self.number(rest.prefix(2)) * 8 % memory.byteCount
      let word = Self.number(rest.dropFirst(2).prefix(8))
      unsafe (memory.base + Int(place)).storeBytes(of: word.littleEndian, as: UInt64.self)
      rest = rest.dropFirst(10)
    }
    // At 0, so that small numbers lead to tables.
    reader = TableReader(levels: format.levels, memory: memory, address: 0)
  }

  func run() {
    guard let contents = try? reader.contents(root: 0) else {
      for step in 0..<64 as Range<UInt64> { _ = try? reader.walk(step << 33 | step << 21 | step << 12, root: 0) }
      return
    }
    precondition(contents.tables.count <= Self.tables)
    var end: UInt64 = 0
    for leaf in contents.leaves {
      precondition(leaf.iova >= end, "leaves out of order: \(leaf)")
      end = leaf.iova + leaf.byteCount
      precondition(leaf.address % leaf.byteCount == 0 && leaf.iova % leaf.byteCount == 0, "\(leaf)")
    }
    for leaf in contents.leaves.prefix(16) {
      let last = leaf.iova + (leaf.byteCount - 1)
      guard let first = try? reader.walk(leaf.iova, root: 0), first == leaf, (try? reader.walk(last, root: 0)) == leaf
      else { fatalError("not found by a walk: \(leaf)") }
    }
  }

  private static func number(_ bytes: ArraySlice<UInt8>) -> UInt64 {
    bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }
}
