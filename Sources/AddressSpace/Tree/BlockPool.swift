internal import Glibc

/// Memory in blocks of one size, for the nodes of a tree.
///
/// It grows by chunks that never move, so a pointer to a block stays good; a block that is given back is
/// the next one taken; all memory is returned at deinit. The first chunk is one page and each further one
/// doubles up to 256 KiB: a small tree stays small, a big one does not ask often.
///
/// Running out of memory is an answer, not a trap: ``reserve(_:)`` is called before an operation changes
/// anything, and ``take()`` never fails after it.
///
/// A pool whose user holds a spin lock is *fed*: it asks for no memory itself, and whoever takes the lock sees to it
/// that there is enough for what is to come, see ``RangeStore/lock(_:insertions:)``.
@safe
struct BlockPool: ~Copyable {
  /// The length of a block in bytes, a multiple of ``alignment``.
  let blockByteCount: Int
  /// Blocks that were given back, each pointing to the next.
  private var free: UnsafeMutableRawPointer?
  private var freeCount = 0
  /// Blocks of the newest chunk that were never taken: untouched memory, so that it costs no page.
  private var fresh: UnsafeMutableRawPointer?
  private var freshCount = 0
  /// All chunks, each pointing to the one before.
  private var chunks: UnsafeMutableRawPointer?
  private var nextChunkByteCount = BlockPool.firstChunkByteCount
  /// Bytes of all chunks.
  private(set) var byteCount = 0
  /// Blocks that are taken.
  private(set) var takenCount = 0
  /// For tests: how many chunks may still be asked for before memory "runs out".
  var chunkBudget = Int.max
  /// Memory comes by ``add(_:)`` only.
  var isFed = false
  #if DEBUG
    /// Of a fed pool: the insertions that memory was seen to be there for.
    private var announced = 0
  #endif

  /// A cache line.
  static let alignment = 64
  private static let firstChunkByteCount = 4096
  private static let largestChunkByteCount = 256 << 10
  /// The link to the chunk before, padded to keep the blocks aligned.
  private static let chunkHeaderByteCount = 64

  init(blockByteCount: Int) {
    precondition(blockByteCount.isMultiple(of: BlockPool.alignment))
    precondition(blockByteCount <= BlockPool.firstChunkByteCount - BlockPool.chunkHeaderByteCount)
    self.blockByteCount = blockByteCount
    unsafe (free, fresh, chunks) = (nil, nil, nil)
  }

  deinit {
    assert(SpinLock.heldCount == 0, "memory is given back with a spin lock held")
    var chunk = unsafe chunks
    while let current = unsafe chunk {
      unsafe chunk = unsafe current.load(as: UnsafeMutableRawPointer?.self)
      unsafe Glibc.free(current)
    }
  }
}

extension BlockPool {
  /// The blocks that can be taken without asking for memory.
  var availableCount: Int { freeCount + freshCount }

  /// Makes sure that `count` blocks can be taken; `false` when there is no memory.
  ///
  /// - Complexity: O(1), or one `malloc` a chunk.
  mutating func reserve(_ count: Int) -> Bool {
    while availableCount < count { guard !isFed, grow() else { return false } }
    return true
  }

  /// The length of a chunk that has to be added so that ``reserve(_:)`` succeeds, or one of several; 0 when none has, or when
  /// there is no memory.
  func wantedByteCount(_ count: Int) -> Int { availableCount >= count || chunkBudget == 0 ? 0 : nextChunkByteCount }

  /// So many insertions are to come, for which a fed pool has memory if there is any.
  @inline(__always)
  mutating func announce(_ insertions: Int) {
    #if DEBUG
      announced = insertions
    #endif
  }

  /// An insertion is to come now.
  @inline(__always)
  mutating func noteInsertion() {
    #if DEBUG
      precondition(!isFed || announced > 0, "nobody has seen to the memory for this insertion")
      announced -= 1
    #endif
  }

  /// Takes a block. Its bytes are whatever they were.
  mutating func take() -> UnsafeMutableRawPointer {
    takenCount += 1
    guard let block = unsafe free else { return unsafe takeFresh() }
    unsafe free = unsafe block.load(as: UnsafeMutableRawPointer?.self)
    freeCount -= 1
    return unsafe block
  }

  private mutating func takeFresh() -> UnsafeMutableRawPointer {
    guard freshCount > 0, let block = unsafe fresh else { preconditionFailure("take() without reserve()") }
    freshCount -= 1
    unsafe fresh = unsafe block + blockByteCount
    return unsafe block
  }

  /// Gives a block back.
  mutating func give(_ block: UnsafeMutableRawPointer) {
    unsafe block.storeBytes(of: free, as: UnsafeMutableRawPointer?.self)
    unsafe free = unsafe block
    freeCount += 1
    takenCount -= 1
  }

  @inline(never)  // so that the data path is seen to allocate nothing beside this
  private mutating func grow() -> Bool {
    guard chunkBudget > 0, let chunk = BlockChunk(byteCount: nextChunkByteCount) else { return false }
    add(chunk)
    return true
  }

  /// Adds a chunk. The few blocks that the newest one has left go to the free list.
  mutating func add(_ chunk: consuming BlockChunk) {
    while freshCount > 0 {
      takenCount += 1
      unsafe give(takeFresh())
    }
    let length = chunk.byteCount, memory = unsafe chunk.take()
    chunkBudget -= 1
    unsafe memory.storeBytes(of: chunks, as: UnsafeMutableRawPointer?.self)
    unsafe chunks = unsafe memory
    unsafe fresh = unsafe memory + BlockPool.chunkHeaderByteCount
    freshCount = (length - BlockPool.chunkHeaderByteCount) / blockByteCount
    byteCount += length
    nextChunkByteCount = min(length * 2, BlockPool.largestChunkByteCount)
  }
}

/// Memory for a ``BlockPool``, which no pool has yet.
@safe
package struct BlockChunk: ~Copyable {
  private let memory: UnsafeMutableRawPointer
  let byteCount: Int

  /// Asks for memory, so with no spin lock held; nil when there is none.
  package init?(byteCount: Int) {
    assert(SpinLock.heldCount == 0, "memory is asked for with a spin lock held")
    guard let memory = unsafe aligned_alloc(BlockPool.alignment, byteCount) else { return nil }
    unsafe self.memory = unsafe memory
    self.byteCount = byteCount
  }

  deinit { unsafe free(memory) }

  consuming func take() -> UnsafeMutableRawPointer {
    let memory = unsafe memory
    discard self
    return unsafe memory
  }
}
