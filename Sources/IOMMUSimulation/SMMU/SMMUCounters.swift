/// What a simulated SMMUv3 did, counted since the machine began.
public struct SMMUCounters: Hashable, Sendable {
  /// Who put a command into the queue.
  public enum Sender: Hashable, Sendable {
    /// The process, by `IOMMU_HWPT_INVALIDATE`; the syncs that the kernel adds to its commands are counted here.
    case process
    /// The kernel, by itself.
    case kernel
  }

  /// Commands that were executed, by opcode.
  public struct Commands: Hashable, Sendable {
    var counts: [SMMUOpcode: Int] = [:]

    package init() {}

    /// How many there were of an opcode.
    public subscript(opcode: SMMUOpcode) -> Int { counts[opcode] ?? 0 }
    /// `CMD_TLBI` of any kind.
    public var tlbInvalidations: Int { sum(\.isTLBInvalidation) }
    /// `CMD_CFGI` of any kind.
    public var configurationInvalidations: Int { sum(\.isConfigurationInvalidation) }
    /// `CMD_SYNC`.
    public var syncs: Int { self[.sync] }

    private func sum(_ isWanted: (SMMUOpcode) -> Bool) -> Int {
      counts.reduce(0) { isWanted($1.key) ? $0 + $1.value : $0 }
    }
  }

  /// Look-ups of a cache.
  public struct Lookups: Hashable, Sendable {
    /// Served from the cache.
    public internal(set) var hits = 0
    /// Not there.
    public internal(set) var misses = 0
  }

  /// Commands that the process sent.
  public internal(set) var process = Commands()
  /// Commands that the kernel sent.
  public internal(set) var kernel = Commands()
  /// Translations of both stages together.
  public internal(set) var iotlb = Lookups()
  /// Pointers to tables, where the IOTLB missed: one look-up a walk, a hit when any level was there.
  public internal(set) var walkCache = Lookups()
  /// Pointers to tables of pages, the deepest there are: one look-up a walk. A miss is a read of memory that scattered pages cost,
  /// the `PTcache L3` of the literature.
  public internal(set) var lastTables = Lookups()
  /// Bytes that commands of the process's by address name; those that name a whole tag are not among them.
  public internal(set) var invalidatedBytes: UInt64 = 0
  /// Stage 2 alone, for tables, descriptors and what the IOTLB did not have.
  public internal(set) var stage2Cache = Lookups()
  /// Stream table entries and context descriptors.
  public internal(set) var configurationCache = Lookups()
  /// Descriptors of page tables that were read from memory.
  public internal(set) var descriptorReads = 0
  /// Times that a producer found the command queue full.
  public internal(set) var queueStalls = 0
  /// The most commands that ever waited in the queue.
  public internal(set) var deepestQueue = 0
  /// Commands that were refused with `CERROR_ILL`.
  public internal(set) var illegalCommands = 0
  /// Invalidations that were lost on request; see ``SimulatedHost/loseInvalidation(_:from:unit:)``.
  public internal(set) var lostInvalidations = 0
  /// Waits of a second that ended before their sync did.
  public internal(set) var syncTimeouts = 0
  /// Event records written.
  public internal(set) var events = 0
  /// Events that found the event queue full.
  public internal(set) var lostEvents = 0

  package init() {}

  mutating func count(_ opcode: SMMUOpcode, from sender: Sender) {
    switch sender {
    case .process: process.counts[opcode, default: 0] += 1
    case .kernel: kernel.counts[opcode, default: 0] += 1
    }
  }
}
