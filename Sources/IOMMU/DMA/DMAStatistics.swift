/// Counters of a domain since it was made; all monotone but those named `live`, `queued` and `cached`, and those of
/// registrations and of ``persistentBytes``.
///
/// A mapping counts from its kernel call on. Where that fails while another thread looks, ``maps`` keeps what was seen
/// until as many were made.
public struct DMAStatistics: Hashable, Sendable {
  /// Mappings made: one a buffer, an unsafe mapping or a part of a list.
  public var maps: UInt64 = 0
  /// Mappings ended.
  public var unmaps: UInt64 = 0
  /// System calls made for maps, unmaps and invalidations, failed ones included; not those of opening, closing and growing
  /// arenas. Where this process owns the page tables, a map of registered memory makes none.
  public var systemCalls: UInt64 = 0
  /// Invalidation commands that this process sent, to each physical IOMMU: in strict mode those of an unmap or a list, one where the
  /// hardware takes ranges; in a lazy mode one a flush. Zero where the kernel owns the page tables, which does not tell of its own.
  public var invalidations: UInt64 = 0
  /// How often this process waited for its commands: a system call each.
  public var syncs: UInt64 = 0
  /// Maps of memory that was not registered, which had the kernel pin it for the mapping's life: a system call each way that
  /// memory of the arenas does not cost. Zero where the kernel owns the page tables. ``RegistrationPolicy/requireRegistered`` refuses
  /// them.
  public var implicitRegistrations: UInt64 = 0
  /// Ranges of which unmaps kept track for the invalidation that follows, on page tables of this process. In a lazy mode none
  /// is: a flush is of everything.
  public var gatheredRanges: UInt64 = 0
  /// Bytes of memory that is pinned for page tables of this process. They grow with the addresses that are in use at one time, and
  /// stay: tables without a mapping are used again before there are more.
  public var tableBytes: UInt64 = 0
  /// Maps that failed.
  public var failedMaps: UInt64 = 0
  /// Mappings that are live now, arenas not counted.
  public var liveMappings = 0
  /// Bytes of IOVA that those take.
  public var liveBytes: UInt64 = 0
  /// Flushes of the lazy modes, and those that failed and are tried again.
  public var flushes: UInt64 = 0, failedFlushes: UInt64 = 0
  /// Bytes of IOVA that were unmapped in a lazy mode and wait for a flush now.
  public var queuedBytes: UInt64 = 0
  /// With ``Protection/automatic(_:)`` on page tables of the kernel's: maps of a buffer that took over one that was kept after
  /// an earlier unmap, without a system call; and those that found none and took one, as ever.
  public var cacheHits: UInt64 = 0, cacheMisses: UInt64 = 0
  /// Bytes of IOVA that are kept like that now: within a device's reach, though no mapping has them.
  public var cachedBytes: UInt64 = 0
  /// How often the timer of the lazy modes and of the kept maps could not be had: each time all that waited was flushed at once.
  /// See ``DMANotice/timerMissing(device:errno:)``.
  public var timerFailures: UInt64 = 0
  /// The longest time that an unmapped range stayed within reach, in nanoseconds, from when it was queued to the end of
  /// the flush; a few milliseconds exact.
  public var longestWindowNanoseconds: UInt64 = 0
  /// Bytes of memory that was given up, since an unmap failed and the device may still reach it.
  public var leakedBytes: UInt64 = 0
  /// Bytes of memory that the arenas hold, and of these, bytes that are mapped once for all.
  public var arenaBytes: UInt64 = 0
  /// Bytes of the coherent arena, mapped and pinned while the domain is open.
  public var coherentArenaBytes: UInt64 = 0
  /// Devices of the domain whose ``AddressPolicy/sacFirst`` found no room below 4 GiB and got out of the way, for good.
  public var addressPolicyTrips: UInt64 = 0
  /// Registrations that there are now, those included that have ended and wait for mappings inside of them; see ``Registration``.
  public var registrations = 0
  /// Bytes of memory that is registered now.
  public var registeredBytes: UInt64 = 0
  /// Bytes of the buffer arena and of registrations that are mapped once for all now, under ``Protection/persistent``, or
  /// since then, because of live mappings inside of them: within the device's reach, mapped for the driver or not.
  public var persistentBytes: UInt64 = 0
  /// Bytes that were copied under ``Protection/bounce``, both ways.
  public var bouncedBytes: UInt64 = 0
  /// Mistakes that debug mode has found; see <doc:DebugMode>.
  public var debugReports: UInt64 = 0
  /// Areas that arenas were mapped in once for all, and those of them that went by `IOMMU_IOAS_MAP_FILE`.
  public var arenaAreas = 0, arenaFileAreas = 0

  /// All zero.
  public init() {}
}
