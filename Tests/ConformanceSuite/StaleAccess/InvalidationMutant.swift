import IOMMU

/// What a library could get wrong about an invalidation. Each leaves something stale, and ``StaleAccess`` must notice.
package enum InvalidationMutant: String, Sendable, CaseIterable {
  /// The n-th invalidation is reported and not sent.
  case dropped
  /// The n-th invalidation is of another address space.
  case wrongASID = "wrong-asid"
  /// The n-th invalidation is of the page after.
  case wrongPage = "wrong-page"
  /// The n-th invalidation of several pages leaves out the last.
  case shortByOne = "short-by-one"
  /// The n-th invalidation is complete before the entries are cleared.
  case syncBeforeStore = "sync-before-store"
  /// Every invalidation is of leaves only, also where tables went.
  case leafHintAlways = "leaf-hint-always"
  /// Tables are used again before the invalidation is complete.
  case tablesReusedEarly = "tables-reused-early"

  /// Whether it is about one invalidation, and not about all.
  var isAboutOne: Bool { self != .leafHintAlways && self != .tablesReusedEarly }

  /// Whether what caches the way to leaves is needed to see it; QEMU's SMMUv3 has no such cache.
  package var needsWalkCache: Bool { !isAboutOne }

  /// Changes the commands of a call, two words each; false where the mistake cannot be made in them.
  func change(_ words: inout [UInt64]) -> Bool {
    switch self {
    case .dropped: words = []
    case .wrongASID: for index in stride(from: 0, to: words.count, by: 2) { words[index] ^= 2 << 48 }
    case .wrongPage:
      guard Self.isByAddress(words) else { return false }
      words[1] += 4096
    case .shortByOne: return Self.shorten(&words)
    case .leafHintAlways:
      for index in stride(from: 0, to: words.count, by: 2) where words[index] & 0xff == 0x12 { words[index + 1] |= 1 }
    case .syncBeforeStore, .tablesReusedEarly: break
    }
    return true
  }

  /// One command for an address or a range of leaves.
  private static func isByAddress(_ words: [UInt64]) -> Bool {
    words.count == 2 && words[0] & 0xff == 0x12 && words[1] & 1 == 1
  }

  /// By the fields of a range command: (NUM + 1) · 2^SCALE pages.
  private static func shorten(_ words: inout [UInt64]) -> Bool {
    let pages = (words[0] >> 12 & 31 + 1) << (words[0] >> 20 & 31)
    guard isByAddress(words), words[1] >> 10 & 3 != 0, (2...32).contains(pages) else { return false }
    words[0] = words[0] & ~(31 << 12 | 31 << 20) | (pages - 2) << 12
    return true
  }
}
