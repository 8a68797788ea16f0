import IOMMU
import IOMMUSimulation

/// What a library could get wrong about an invalidation. Each leaves something stale, and ``StaleAccess`` must notice.
package enum InvalidationMutant: String, Sendable, CaseIterable {
  /// The n-th invalidation is reported and not sent.
  case dropped
  /// The n-th invalidation is of another address space.
  case wrongTag = "wrong-tag"
  /// The n-th invalidation is of the page or the block after.
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

  /// Changes a call; false where the mistake cannot be made in it.
  ///
  /// - Parameters:
  ///   - call: The invalidation.
  ///   - told: What invalidations were for until now.
  func change(_ call: inout InvalidationCall, told: [UInt32]) -> Bool {
    switch self {
    case .dropped: call.words = []
    case .syncBeforeStore, .tablesReusedEarly: break
    case .wrongTag, .wrongPage, .shortByOne, .leafHintAlways:
      return call.type == NestingTypes.vtdCommand ? changeVTd(&call, told: told) : changeSMMU(&call.words)
    }
    return true
  }
}

// MARK: - SMMUv3

extension InvalidationMutant {
  /// Two words a command, with the ASID in the first: Arm IHI 0070, 4.4.1.
  private func changeSMMU(_ words: inout [UInt64]) -> Bool {
    switch self {
    case .wrongTag: for index in stride(from: 0, to: words.count, by: 2) { words[index] ^= 2 << 48 }
    case .wrongPage:
      guard Self.isByAddress(words) else { return false }
      words[1] += 4096
    case .shortByOne: return Self.shorten(&words)
    default:
      for index in stride(from: 0, to: words.count, by: 2) where words[index] & 0xff == 0x12 { words[index + 1] |= 1 }
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

// MARK: - VT-d

extension InvalidationMutant {
  /// Three words a command: the address, how many pages, flags. The tag is that of the nested page table which the call is for:
  /// `struct iommu_hwpt_vtd_s1_invalidate`.
  private func changeVTd(_ call: inout InvalidationCall, told: [UInt32]) -> Bool {
    // One block of leaves.
    let isByAddress = call.words.count == 3 && call.words[1] != .max && call.words[2] & 1 == 1
    switch self {
    case .wrongTag:
      guard told.count > 1, call.pageTable == told[0] else { return false }
      call.pageTable = told[1]
    case .wrongPage:
      // The kernel rounds to a block, so that the page after would be of the same one.
      guard isByAddress else { return false }
      call.words[0] += call.words[1] * 4096
    case .shortByOne:
      // For the same reason two are the only number of pages of which the last can be left out.
      guard isByAddress, call.words[1] == 2 else { return false }
      call.words[1] = 1
    default: for index in stride(from: 2, to: call.words.count, by: 3) { call.words[index] |= 1 }
    }
    return true
  }
}
