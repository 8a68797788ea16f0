import IOMMU

/// The accounts of pinned memory: what counts against `RLIMIT_MEMLOCK`, and for whom.
///
/// iommufd counts by user, so that other processes of the user matter; type1 counts by process. With CAP_IPC_LOCK
/// iommufd keeps no account and type1 keeps one without a limit; `VmPin` counts all that iommufd pinned.
struct MemoryLock {
  enum Account { case none, user, process }

  var limit: UInt64
  var hasCapability: Bool
  /// Pages pinned by iommufd on the user's account, those of other processes included.
  private(set) var userPages: UInt64
  /// Pages on this process's account: `VmLck`.
  private(set) var processPages: UInt64 = 0
  /// Pages pinned by iommufd for this process: `VmPin`.
  private(set) var pinnedPages: UInt64 = 0

  static let pageByteCount: UInt64 = 4096

  init(limit: UInt64, hasCapability: Bool, bytesPinnedByOthers: UInt64) {
    (self.limit, self.hasCapability) = (limit, hasCapability)
    userPages = bytesPinnedByOthers / Self.pageByteCount
  }

  private var limitPages: UInt64 { limit / Self.pageByteCount }

  /// The account that an iommufd map is kept on; it stays the same until the map goes.
  var iommufdAccount: Account { hasCapability ? .none : .user }

  mutating func pin(_ pages: UInt64, on account: Account) throws(Errno) {
    if account == .user {
      guard userPages + pages <= limitPages else { throw .noMemory }
      userPages += pages
    }
    pinnedPages += pages
  }

  mutating func unpin(_ pages: UInt64, from account: Account) {
    if account == .user { userPages -= pages }
    pinnedPages -= pages
  }

  mutating func lockForProcess(_ pages: UInt64) throws(Errno) {
    guard hasCapability || processPages + pages <= limitPages else { throw .noMemory }
    processPages += pages
  }

  mutating func unlockForProcess(_ pages: UInt64) { processPages -= pages }

  /// Whether pinning this much would fail, asked before memory is touched.
  func exceeds(_ pages: UInt64, on account: Account) -> Bool {
    switch account {
    case .none: false
    case .user: userPages + pages > limitPages
    case .process: !hasCapability && processPages + pages > limitPages
    }
  }
}
