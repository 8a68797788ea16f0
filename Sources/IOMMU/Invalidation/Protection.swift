/// What an unmap leaves within a device's reach, and for how long.
///
/// | protection | after `unmap` returns the device reaches the memory | price |
/// | --- | --- | --- |
/// | ``strict`` | never | one invalidation an unmap, or a list |
/// | ``lazy(_:)`` | until the next flush | amortised |
/// | ``automatic(_:)`` | as one of these, or while its map is kept for the next: since its last use for at most ``AutomaticOptions/cacheTimeout`` while the process runs, without bound while it is stopped | nothing for a buffer that is mapped again |
/// | ``persistent`` | always, if it is a buffer or was registered; other memory never | nothing |
/// | ``bounce`` | never: it sees a copy, and never the memory | a copy each way that the direction has |
///
/// The corresponding kernel interface is `/sys/kernel/iommu_groups/N/type`, `DMA` and `DMA-FQ`; for ``bounce``
/// `CONFIG_SWIOTLB` with untrusted devices.
public enum Protection: Hashable, Sendable {
  /// An unmap returns when the memory is out of reach. The default.
  case strict
  /// An unmap puts the range into a flush queue and returns: the next flush takes all of them out of reach together.
  ///
  /// Until then the device may still read and write what was unmapped: at most for the timeout while the process runs,
  /// without bound while it is stopped. One timer for all domains of the process sees to that, and goes on with the others while
  /// the flush of one takes long; where it cannot be had, an unmap is flushed at once. ``DMAStatistics/longestWindowNanoseconds``
  /// is what it came to. The address is not given out again before, and memory of the library's own that
  /// was freed is kept out of use; when that comes to more than 64 MiB a flush is made for it. Memory of the caller's must not be put
  /// to a use that the device may not see or change before ``DMADomain/drain()``.
  ///
  /// Where this process owns the page tables, an unmap clears the entry at once, without a system call, and what waits is the
  /// invalidation of what devices have cached of it: a flush makes one of everything, for all that is queued.
  ///
  /// On tables that the kernel owns it is the unmap itself that waits, and the flush unmaps each contiguous run with one
  /// ioctl, of 32 MiB and 256 ranges at most, so that none takes long. That saves system calls and no invalidation, of which the kernel makes one for each area, and the window is
  /// wider than that of the kernel's own lazy mode: the translation stays valid, not only what is cached of it. A list
  /// waits as one range, and so does a buffer, however long. Lists and memory of the caller's of more than 32 MiB, which take several ioctls, and what is
  /// unlinked from a ``Reservation``, whose addresses may be linked anew, do not wait.
  case lazy(FlushQueueOptions)
  /// Memory of the buffer arena, and what was registered, is mapped once for all, in areas of capped size: mapping and
  /// unmapping an owned buffer is arithmetic, without a system call and without an invalidation.
  ///
  /// The device can read and write *all* of that memory *all* the time, whichever direction a mapping has and whether it is
  /// mapped or not. It is memory that only buffers of this domain are made of, so nothing else of the process is shown: but
  /// a buffer that the CPU works on may change under its hands, if the device misbehaves.
  ///
  /// Memory is mapped by the switch, and when the arena grows: both throw when it cannot be. What is not a single buffer, or
  /// a single piece of registered memory, is mapped and unmapped as with ``strict``: lists, reservations, memory of the
  /// caller's that is not registered, memory at a fixed address, and in a domain that several devices share what lies above
  /// the mask of the device that maps it.
  ///
  /// A switch to another protection unmaps all chunks and registrations in which no mapping is live. What is left, which
  /// ``DMAStatistics/persistentBytes`` tells, stays within reach until the last mapping inside is unmapped; no new
  /// buffer is made of it before. A buffer that the driver already has may still lie there: unmapping it is strict from
  /// then on only where nothing is left.
  case persistent
  /// The device never sees the memory that is mapped: it gets a copy, in memory of the library's own that is mapped once for all.
  ///
  /// Copied is what the direction says: to the copy when memory is mapped that the device reads, from it when memory is
  /// unmapped that the device writes, and parts of it by ``Mapping/sync(for:_:_:)`` and ``UnsafeMapping/sync(for:_:)``. What
  /// the device writes without having been asked to reaches nobody, and what it could write and does not comes back as
  /// zeros with ``DMADirection/fromDevice``. Memory of the caller's need not be whole pages: no other byte of its pages is
  /// copied. It is read and written by this process, which ends if it is not there, where other protections throw.
  ///
  /// The device can read and write all copies that there are, and what is left of earlier ones, which it was given once.
  ///
  /// A list is copied as a whole. What can only be mapped in its place is refused: memory at a fixed address, and links of a
  /// ``Reservation``. ``DMADomain/translate(_:byteCount:)-(IOVA,_)`` leads to the copy. Coherent arrays are what they always are.
  case bounce
  /// The library chooses by what an invalidation costs here, which ``DMADomain/calibration`` tells.
  ///
  /// Where this process owns the page tables, an unmap waits for a flush: in a queue a processor where an invalidation is
  /// cheap, in a single, deep one where it is dear.
  ///
  /// On tables that the kernel owns no queue saves an invalidation. Where one is cheap, this is as ``strict``. Where it is
  /// dear, the maps of buffers outlive their unmap: the next map of the same buffer, with the same or less access, gets the
  /// same address back, without a system call. Meanwhile the device reaches the buffer, *also while the driver
  /// reads and writes it*, as a mapping that was `bidirectional` once lets it: what a device wrote must be checked after it
  /// was copied, and secrets do not belong there. The cache lets go of a map when it was not used for
  /// ``AutomaticOptions/cacheTimeout``, when the cache is full or the kernel short of room, in the order of use; when the buffer is
  /// dropped, before its memory serves another; and of all by ``DMADomain/drain()`` and a switch. Lists, reservations and
  /// memory of the caller's are unmapped as in ``strict``: nobody tells the library when such memory goes.
  case automatic(AutomaticOptions)

  /// The library finds out what suits; 64 MiB of maps at most are kept, for a second.
  public static let automatic = Protection.automatic(AutomaticOptions())
}

/// How unmapped ranges wait for a flush. The corresponding kernel type is `struct iommu_dma_options`.
public struct FlushQueueOptions: Hashable, Sendable {
  /// Who shares a queue.
  public enum Topology: String, Hashable, Sendable, CaseIterable {
    /// A queue a processor: no contention, and a flush whenever one of them is full. Right where a flush is cheap.
    case perCPU
    /// One queue for all: far fewer flushes. Right where a flush is dear, as on virtual IOMMUs.
    case single
  }

  /// Who shares a queue.
  public var topology: Topology
  /// Entries of each queue, rounded up to a power of two; one of them is never used. A full queue is flushed.
  public var depth: Int
  /// How long an entry waits at most, while the process runs.
  public var timeout: Duration

  /// The kernel's figures for a topology, where nothing else is said: 256 entries and 10 ms, 32,768 entries and 1 s.
  public init(_ topology: Topology, depth: Int? = nil, timeout: Duration? = nil) {
    self.topology = topology
    self.depth = depth ?? (topology == .perCPU ? 256 : 32_768)
    self.timeout = timeout ?? (topology == .perCPU ? .milliseconds(10) : .seconds(1))
  }

  /// 256 entries a processor, 10 ms.
  public static let perCPU = FlushQueueOptions(.perCPU)
  /// 32,768 entries in all, 1 s.
  public static let single = FlushQueueOptions(.single)
}
