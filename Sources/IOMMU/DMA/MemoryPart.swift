import AddressSpace

/// A piece of memory in a range that a device reaches or will reach: a buffer of the domain's, or memory of the caller's.
///
/// Trivial, so that what holds it can be discarded; who holds it frees it by ``free()``.
@safe
struct MemoryPart {
  /// The domain that the memory goes back to; nil for the caller's memory.
  let core: Unmanaged<DomainCore>?
  let base: UnsafeMutableRawPointer
  let byteCount: Int
  /// Whether the device may reach the rest of the first and the last page. A buffer has its pages for itself.
  let isWidened: Bool
  /// As ``DMABuffer/reachableUntil``.
  var reachableUntil: UInt64 = 0
  /// Where its first page lies in the range, in bytes from the range's start.
  var placement: UInt64 = 0
  /// The number of its record in debug mode; 0 where there is none.
  var record: UInt64 = 0

  /// A buffer, whose memory and reference the part takes over.
  init(_ buffer: consuming DMABuffer) {
    (byteCount, isWidened, reachableUntil) = (buffer.byteCount, true, buffer.reachableUntil)
    let parts = unsafe buffer.take()
    unsafe (core, base) = unsafe (parts.core, parts.base)
  }

  /// Memory of the caller's, not empty.
  init(unsafe memory: UnsafeRawBufferPointer, isWidened: Bool) {
    unsafe core = nil
    unsafe base = UnsafeMutableRawPointer(mutating: memory.baseAddress!)
    byteCount = memory.count
    self.isWidened = isWidened
  }

  /// Whether the memory is the caller's.
  var isUnsafe: Bool { unsafe core == nil }
  /// The address of its first byte.
  var host: UInt64 { unsafe UInt64(UInt(bitPattern: base)) }

  /// Its whole pages: where they begin in this process, and how long they are.
  func pages(_ granuleMask: UInt64) -> (host: UInt64, byteCount: UInt64) {
    let first = host & ~granuleMask
    return (first, ((host &- first) &+ UInt64(byteCount) &+ granuleMask) & ~granuleMask)
  }

  /// The buffer again.
  ///
  /// - Precondition: The memory is not the caller's.
  func buffer() -> DMABuffer {
    guard let core = unsafe core else { preconditionFailure("memory of the caller's is no DMABuffer") }
    return unsafe DMABuffer(core: core, base: base, byteCount: byteCount, reachableUntil: reachableUntil)
  }

  /// Gives a buffer's memory and reference back; the caller's memory stays the caller's.
  func free() {
    if let core = unsafe core { unsafe DomainCore.freeBuffer(core, base, byteCount, after: reachableUntil) }
  }
}

/// What one kernel call maps.
struct Area {
  /// Where it begins in the range, in bytes from the range's start, and in this process.
  var placement: UInt64, host: UInt64
  var byteCount: UInt64
  /// How many of the parts are complete with it, from the first on.
  var partsDone: Int

  var end: UInt64 { placement + byteCount }
}

/// The kernel calls that map some parts: neighbours in both spaces go together, and none is longer than an area may be.
///
/// Unmapping walks the same way, since what was mapped by one call cannot be unmapped by two.
@safe
struct AreaWalk {
  private let parts: UnsafePointer<MemoryPart>
  private let count: Int
  private let granuleMask: UInt64
  private var index = 0
  /// What was mapped of the part already.
  private var done: UInt64 = 0
  /// Whether neighbours go together. Unmapping does not depend on it, where the process owns the page tables.
  var joinsParts = true

  /// - Parameter parts: Sorted by placement; stays valid while the walk is in use.
  init(_ parts: UnsafePointer<MemoryPart>, count: Int, granuleMask: UInt64) {
    unsafe self.parts = parts
    (self.count, self.granuleMask) = (count, granuleMask)
  }

  mutating func next() -> Area? {
    guard index < count else { return nil }
    let most = UInt64(Limits.areaByteCount)
    let pages = unsafe parts[index].pages(granuleMask)
    var area = unsafe Area(
      placement: parts[index].placement + done, host: pages.host + done, byteCount: pages.byteCount - done,
      partsDone: index)
    if area.byteCount > most {
      area.byteCount = most
      done += most
      return area
    }
    (index, done) = (index + 1, 0)
    while joinsParts, index < count {
      let next = unsafe parts[index].pages(granuleMask)
      guard next.host == area.host + area.byteCount, unsafe parts[index].placement == area.end,
        area.byteCount + next.byteCount <= most
      else { break }
      area.byteCount += next.byteCount
      index += 1
    }
    area.partsDone = index
    return area
  }
}
