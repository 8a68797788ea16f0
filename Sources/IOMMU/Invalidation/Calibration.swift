/// What an invalidation costs on a machine, and how that is known: what ``Protection/automatic(_:)`` goes by.
public struct Calibration: Hashable, Sendable {
  /// How it is known whether an invalidation is dear. Certain signs come first; a machine without any is timed.
  public enum Evidence: Hashable, Sendable {
    /// A VT-d unit has caching mode: it is emulated, and each invalidation leaves the guest. The source is bit 7 of
    /// `/sys/class/iommu/<unit>/intel-iommu/cap`.
    case cachingMode(unit: String)
    /// A virtio-iommu, which only virtual machines have.
    case virtioIOMMU(unit: String)
    /// The processors are a hypervisor's, and so is the IOMMU. The source is the flag in `/proc/cpuinfo`.
    case hypervisor
    /// The shortest of ``Calibration/timingCount`` timings, in nanoseconds: where the process owns the page tables of an
    /// invalidation of everything, else of an unmap of a page of the library's own, which no device is told of.
    case timings(shortest: UInt64)
    /// ``AutomaticOptions/isInvalidationDear``.
    case told
  }

  /// What ``Protection/automatic(_:)`` does by it.
  public enum Choice: String, Hashable, Sendable, CaseIterable {
    /// As ``Protection/strict``: page tables of the kernel's, and a cheap invalidation. Nothing is saved there by putting one off.
    case strict
    /// As ``Protection/lazy(_:)`` with a queue a processor: page tables of the process's, and a cheap invalidation.
    case lazyPerCPU = "lazy-per-cpu"
    /// As ``Protection/lazy(_:)`` with a single, deep queue: page tables of the process's, and a dear invalidation.
    case lazySingle = "lazy-single"
    /// Maps are kept for reuse: page tables of the kernel's, and a dear invalidation.
    case mapCache = "map-cache"
  }

  /// How it is known.
  public let evidence: Evidence
  /// Whether an invalidation takes 10 µs or more.
  public let isDear: Bool
  /// What was chosen.
  public let choice: Choice

  package init(_ evidence: Evidence, isDear: Bool, isProcessOwned: Bool) {
    (self.evidence, self.isDear) = (evidence, isDear)
    choice = isProcessOwned ? (isDear ? .lazySingle : .lazyPerCPU) : (isDear ? .mapCache : .strict)
  }

  /// The queues that fit the price: a queue a processor, or one for all where a flush is dear.
  public var topology: FlushQueueOptions.Topology { isDear ? .single : .perCPU }

  /// How many timings there are.
  public static let timingCount = 64
}

extension Limits {
  /// From here on an invalidation is dear, in nanoseconds. The kernel's lazy mode on s390 gained from a single queue where
  /// an invalidation took tens of microseconds; hardware takes 0.3 to 2.
  package static let dearInvalidation: UInt64 = 10_000
  /// How long a calibration holds at least, in nanoseconds: a machine at the threshold must not go to and fro.
  package static let calibrationLifetime: UInt64 = 60_000_000_000
}

/// How ``Protection/automatic(_:)`` decides, and what it may keep.
public struct AutomaticOptions: Hashable, Sendable {
  /// Whether an invalidation is dear, for those who know better; nil has the library find out. On page tables of the process's
  /// it says as well, from then on, for how many commands an unmap is invalidated by its range rather than with everything.
  public var isInvalidationDear: Bool?
  /// The most that maps without a mapping may take, in bytes; that much memory stays pinned and within reach.
  public var cacheByteCount = 64 << 20
  /// How long a map without a mapping is kept, while the process runs.
  public var cacheTimeout = Duration.seconds(1)
  /// Whether short memory of the caller's is copied, as with ``Protection/bounce``, and long memory mapped, each where it costs
  /// less: the library times both. Memory that is not whole pages is copied whatever its length, unless `widening` is said.
  ///
  /// False, as a driver that looks at mapped memory without ``UnsafeMapping/sync(for:_:)`` works with maps only.
  public var copiesShortMemory = false

  /// What suits most drivers: the library finds out, and keeps up to 64 MiB for a second.
  public init() {}
}

// MARK: - Certain signs

extension Calibration.Evidence {
  /// What tells for certain that an invalidation is dear; nil on a machine that must be timed. A machine of several units is
  /// as dear as its dearest.
  package static func sign(on kernel: any Kernel) -> Calibration.Evidence? {
    let units = (try? Host(kernel: kernel).units()) ?? []
    if let unit = units.first(where: \.hasCachingMode) { return .cachingMode(unit: unit.name) }
    if let unit = units.first(where: { $0.kind == .virtio }) { return .virtioIOMMU(unit: unit.name) }
    guard let text = try? kernel.readFile("/proc/cpuinfo") else { return nil }
    for line in text.split(separator: UInt8(ascii: "\n")) where line.starts(with: "flags".utf8) {
      // All processors have the same.
      let flags = line.split(separator: UInt8(ascii: " "))
      return flags.contains { $0.elementsEqual("hypervisor".utf8) } ? .hypervisor : nil
    }
    return nil
  }
}

extension IOMMUUnit {
  /// Whether a VT-d caches entries that are not present, which only emulated ones do: `CAP.CM`.
  var hasCachingMode: Bool { capabilities.map { $0 >> 7 & 1 != 0 } ?? false }
}
