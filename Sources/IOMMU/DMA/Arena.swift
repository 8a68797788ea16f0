import AddressSpace
import Synchronization

/// Memory of the library's own, in chunks: memory files on huge pages where they are to be had, near the device.
///
/// The coherent arena maps each chunk once, when it is made; the streaming arena maps nothing, its buffers are mapped one
/// by one, or by ``StandingMaps``, which know its chunks. A fork does not get the memory. Chunks stay until the domain goes.
@safe
final class Arena: Sendable {
  /// A stretch of memory, and what of it is in use.
  @safe
  struct Chunk: ~Copyable, @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let byteCount: Int
    let file: Int32
    /// Where the chunk begins for the device; nil in the streaming arena.
    let iova: IOVA?
    /// Keyed by the device's address, by the host's in the streaming arena, in units of ``Limits/arenaUnit``.
    var store: RangeStore

    /// The key of the first byte.
    var firstKey: UInt64 { unsafe iova?.rawValue ?? UInt64(UInt(bitPattern: base)) }
  }

  let kernel: any Kernel
  let granule: PageSize
  /// The device's NUMA node; nil where there is none, or only one.
  let node: Int?
  let name: String
  /// Whether chunks are on huge pages where these are to be had; else each page can be protected by itself.
  let usesHugePages: Bool
  private let chunks = Mutex(Chunks())

  private struct Chunks: ~Copyable {
    var list: [ChunkBox] = []
    var nextByteCount = Limits.firstChunkByteCount
  }
  /// A box, since an array does not hold what cannot be copied.
  final class ChunkBox: @unchecked Sendable {
    var chunk: Chunk
    /// No memory of it is given out for now.
    var isWithheld = false
    init(_ chunk: consuming Chunk) { self.chunk = chunk }
  }

  init(kernel: any Kernel, granule: PageSize, node: Int?, name: String, usesHugePages: Bool = true) {
    (self.kernel, self.granule, self.node, self.name) = (kernel, granule, node, name)
    self.usesHugePages = usesHugePages
  }

  /// The memory goes last: whoever drops an arena has seen to it that no device reaches it.
  deinit {
    // A fork does not have the memory: what is at its addresses there is something else.
    guard ProcessGuard.isOwner else { return }
    chunks.withLock { chunks in
      for box in chunks.list { unsafe release(box.chunk.base, box.chunk.byteCount, box.chunk.file) }
    }
  }

  /// Bytes of all chunks.
  var byteCount: Int { chunks.withLock { $0.list.reduce(0) { $0 + $1.chunk.byteCount } } }

  /// Takes memory from a chunk that has room; nil when none has: then the caller makes one with ``addChunk``.
  ///
  /// The lowest place of the first chunk that has one: what is made one after the other follows each other in memory, and
  /// goes together in a list. Which addresses a chunk has is the ``AddressPolicy``'s matter, when it is made.
  ///
  /// - Parameter alignment: Of the device's address; of the host's too, up to a page.
  func allocate(byteCount: Int, alignment: PageSize, limit: UInt64) -> (base: UnsafeMutableRawPointer, iova: IOVA?)? {
    let found = chunks.withLock { chunks -> UInt64? in
      let request = RangeStore.Request(byteCount: rounded(byteCount), alignment: alignment, direction: .bottomUp)
      for box in chunks.list where !box.isWithheld {
        if let iova = box.chunk.iova, iova.rawValue + UInt64(box.chunk.byteCount - 1) > limit { continue }
        guard let key = try? box.chunk.store.allocate(request) else { continue }
        return unsafe UInt64(UInt(bitPattern: box.chunk.base)) + (key.rawValue - box.chunk.firstKey)
      }
      return nil
    }
    guard let found, let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(found)) else { return nil }
    return unsafe (base, iova(of: base))
  }

  /// Gives out no memory of the chunks of whose first address `isLeftOut` holds, and of the others again.
  func withhold(where isLeftOut: (UInt64) -> Bool) {
    chunks.withLock { chunks in
      for box in chunks.list { box.isWithheld = unsafe isLeftOut(UInt64(UInt(bitPattern: box.chunk.base))) }
    }
  }

  /// Gives memory back.
  @inline(never)
  func free(_ base: UnsafeMutableRawPointer) {
    let address = UInt64(UInt(bitPattern: base))
    chunks.withLock { chunks in
      guard let box = Self.chunk(of: address, chunks.list) else { return }
      let offset = unsafe address - UInt64(UInt(bitPattern: box.chunk.base))
      box.chunk.store.remove(IOVA(box.chunk.firstKey + offset))
    }
  }

  /// Where memory of the coherent arena lies for the device. O(chunks).
  func iova(of base: UnsafeMutableRawPointer) -> IOVA? {
    let address = UInt64(UInt(bitPattern: base))
    return chunks.withLock { chunks in
      guard let chunk = Self.chunk(of: address, chunks.list), let iova = chunk.chunk.iova else { return nil }
      return unsafe IOVA(iova.rawValue + address - UInt64(UInt(bitPattern: chunk.chunk.base)))
    }
  }

  /// Where an address of a device lies in the coherent arena, if all of `byteCount` does. O(chunks).
  func pointer(of address: IOVA, byteCount: Int) -> UnsafeMutableRawPointer? {
    let found = chunks.withLock { chunks -> UInt? in
      for box in chunks.list {
        guard let iova = box.chunk.iova, address >= iova else { continue }
        let offset = address.rawValue - iova.rawValue
        guard offset < UInt64(box.chunk.byteCount), UInt64(byteCount) <= UInt64(box.chunk.byteCount) - offset else {
          continue
        }
        return unsafe UInt(bitPattern: box.chunk.base) + UInt(offset)
      }
      return nil
    }
    guard let found else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: found)
  }

  /// The size that the next chunk should have, at least `byteCount`: doubled each time up to a bound.
  func nextChunkByteCount(atLeast byteCount: Int) -> Int {
    chunks.withLock { chunks in
      let wanted = max(chunks.nextByteCount, Int(rounded(byteCount)))
      chunks.nextByteCount = min(chunks.nextByteCount * 2, Limits.largestGrowthByteCount)
      return wanted
    }
  }

  func add(_ chunk: consuming Chunk) {
    let box = ChunkBox(chunk)
    chunks.withLock { $0.list.append(box) }
  }

  func release(_ base: UnsafeMutableRawPointer, _ byteCount: Int, _ file: Int32) {
    unsafe kernel.unmapMemory(base, byteCount: byteCount)
    kernel.close(file)
  }

  private func rounded(_ byteCount: Int) -> UInt64 {
    (UInt64(byteCount) + UInt64(Limits.arenaUnit - 1)) & ~UInt64(Limits.arenaUnit - 1)
  }

  private static func chunk(of address: UInt64, _ list: [ChunkBox]) -> ChunkBox? {
    list.first { box in
      let base = unsafe UInt64(UInt(bitPattern: box.chunk.base))
      return address >= base && address - base < UInt64(box.chunk.byteCount)
    }
  }
}
