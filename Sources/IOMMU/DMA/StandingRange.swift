import AddressSpace

/// How a mapping was made, and so how it has to be ended, whatever protection is in force by then.
///
/// Trivial, so that what holds it can be discarded.
@safe
enum MappingKind {
  /// By a map of its own.
  case own
  /// By no call at all: addresses inside of memory that is mapped once for all.
  case standing(UnsafeMutablePointer<StandingRange>)
  /// By a copy, in memory of the coherent arena.
  case bounced(BounceSlot)
  /// Debug mode has a record of it under this number, which says how.
  case recorded(UInt64)

  @inline(__always)
  var isOwn: Bool { if case .own = self { true } else { false } }
}

/// Memory that can be mapped once for all: a chunk of the buffer arena, or what the caller registered.
struct StandingRange {
  /// Mappings inside of it that are live. It comes first, as what nobody reads without the lock: see ``StandingMaps``.
  var live = 0
  /// Where it begins in this process, and its length in bytes, whole pages.
  let host: UInt64, byteCount: UInt64
  /// The memory file; negative for memory of the caller's.
  let file: Int32
  let isHuge: Bool
  /// Where it begins for the device; 0, which is never given out, where it is not mapped.
  var iova: UInt64 = 0
  /// How much of that is unmapped again, from the start on: a kernel call failed half-way.
  var loweredByteCount: UInt64 = 0
  /// Somebody maps or unmaps it, or takes it out: nobody else does until he is done.
  var isBusy = true
  /// Its registration has ended: it is found no more, and goes with the last mapping inside of it.
  var isEnded = false

  init(_ memory: Arena.Memory) {
    host = unsafe UInt64(UInt(bitPattern: memory.base))
    (byteCount, file, isHuge) = (UInt64(memory.byteCount), memory.file, memory.isHuge)
  }

  /// Whether mappings can be made inside of it without a kernel call.
  @inline(__always)
  var isUsable: Bool { iova != 0 && loweredByteCount == 0 && !isBusy && !isEnded }

  /// Whether all of some memory lies in it.
  @inline(__always)
  func covers(_ address: UInt64, _ length: UInt64) -> Bool {
    address >= host && address &- host < byteCount && length <= byteCount &- (address &- host)
  }

  /// As the arena and the kernel calls want it.
  var memory: Arena.Memory {
    unsafe Arena.Memory(
      base: UnsafeMutableRawPointer(bitPattern: UInt(host))!, byteCount: Int(byteCount), file: file, isHuge: isHuge)
  }

  /// In this process, for messages.
  var hostRange: IOVARange { IOVARange(start: IOVA(host), byteCount: byteCount)! }
}
