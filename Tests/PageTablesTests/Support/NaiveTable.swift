import AddressSpace
import PageTables

/// What is mapped, as a dictionary of leaves: the model.
struct NaiveTable {
  struct Leaf: Hashable {
    var address: UInt64, byteCount: UInt64, attributes: LeafAttributes
  }

  let format: TestFormat
  /// By the first address.
  var leaves: [UInt64: Leaf] = [:]

  init(_ format: TestFormat) { self.format = format }

  /// The leaf at an address.
  func leaf(at iova: UInt64) -> (start: UInt64, leaf: Leaf)? {
    for shift in 12..<40 where format.pageSizes >> UInt64(shift) & 1 != 0 {
      let start = iova & ~((1 << UInt64(shift)) - 1)
      if let leaf = leaves[start], leaf.byteCount > iova - start { return (start, leaf) }
    }
    return nil
  }

  /// The leaves that have an address in a range, in rising order.
  func overlapping(_ iova: UInt64, _ last: UInt64) -> [(start: UInt64, leaf: Leaf)] {
    leaves.filter { $0.key <= last && $0.key + ($0.value.byteCount - 1) >= iova }
      .map { (start: $0.key, leaf: $0.value) }.sorted { $0.start < $1.start }
  }

  /// The sizes of leaves for a range: linux-iommu.md §3.2, which is `iommu_pgsize` of the kernel's iommu.c.
  static func sizes(_ bitmap: UInt64, iova: UInt64, address: UInt64, byteCount: UInt64) -> [(
    size: UInt64, count: UInt64
  )] {
    var (iova, address, rest) = (iova, address, byteCount)
    var result: [(size: UInt64, count: UInt64)] = []
    let all = (0..<63).map { 1 << UInt64($0) as UInt64 }.filter { bitmap & $0 != 0 }
    while rest > 0 {
      let size = all.last { $0 <= rest && iova % $0 == 0 && address % $0 == 0 }!
      var count = rest / size
      if let larger = all.first(where: { $0 > size }), (iova ^ address) % larger == 0 {
        let distance = larger - address % larger
        if distance + larger <= rest { count = distance / size }
      }
      result.append((size, count))
      iova += size * count
      address += size * count
      rest -= size * count
    }
    return result
  }

  /// Maps; how many leaves there are, or the first address that is in the way.
  mutating func map(_ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes) -> MapOutcome
  {
    if let first = overlapping(iova, iova + (byteCount - 1)).first { return .exists(iova: max(first.start, iova)) }
    var done: UInt64 = 0
    var entryCount = 0
    for (size, count) in Self.sizes(format.pageSizes, iova: iova, address: address, byteCount: byteCount) {
      for _ in 0..<count {
        leaves[iova + done] = Leaf(address: address + done, byteCount: size, attributes: format.expressible(attributes))
        done += size
        entryCount += 1
      }
    }
    return .mapped(entryCount: entryCount)
  }

  mutating func unmap(_ iova: UInt64, _ byteCount: UInt64) -> (
    outcome: UnmapOutcome, gone: [(start: UInt64, leaf: Leaf)]
  ) {
    let last = iova + (byteCount - 1)
    let met = overlapping(iova, last)
    for (start, leaf) in [met.first, met.last].compactMap({ $0 })
    where start < iova || start + (leaf.byteCount - 1) > last {
      return (.cuts(iova: start, leaf: PageSize(byteCount: leaf.byteCount)!), [])
    }
    for (start, _) in met { leaves[start] = nil }
    return (.unmapped(byteCount: met.reduce(0) { $0 + $1.leaf.byteCount }), met)
  }
}
