internal import Glibc

/// Memory in blocks of one size, for the nodes of a tree.
///
/// It grows by chunks that never move, so a pointer to a block stays good; a block that is given back is
/// the next one taken; all memory is returned at deinit. The first chunk is one page and each further one
/// doubles up to 256 KiB: a small tree stays small, a big one does not ask often.
///
/// Running out of memory is an answer, not a trap: ``reserve(_:)`` is called before an operation changes
/// anything, and ``take()`` never fails after it.
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
    while availableCount < count { guard grow() else { return false } }
    return true
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

  /// Adds a chunk. The few blocks that the newest one has left go to the free list.
  @inline(never)  // so that the data path is seen to allocate nothing beside this
  private mutating func grow() -> Bool {
    guard chunkBudget > 0, let chunk = unsafe aligned_alloc(BlockPool.alignment, nextChunkByteCount) else {
      return false
    }
    while freshCount > 0 {
      takenCount += 1
      unsafe give(takeFresh())
    }
    chunkBudget -= 1
    unsafe chunk.storeBytes(of: chunks, as: UnsafeMutableRawPointer?.self)
    unsafe chunks = unsafe chunk
    unsafe fresh = unsafe chunk + BlockPool.chunkHeaderByteCount
    freshCount = (nextChunkByteCount - BlockPool.chunkHeaderByteCount) / blockByteCount
    byteCount += nextChunkByteCount
    nextChunkByteCount = min(nextChunkByteCount * 2, BlockPool.largestChunkByteCount)
    return true
  }
}
