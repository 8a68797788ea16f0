// Nodes take memory, and with a spin lock held none may be asked for: so it is there before the lock is taken.

extension RangeStore {
  /// Takes the lock that guards this store, with memory at hand for so many insertions: calls of
  /// ``allocate(_:kind:tag:auxiliary:)``, ``insert(_:limit:)`` and ``reserve(_:tag:)``; ``carve(_:)`` counts twice.
  ///
  /// From the first call on the store asks for no memory itself. Where there is none the lock is taken all the same, and an
  /// insertion may then fail with `outOfMemory`.
  ///
  /// - Complexity: O(1); once in many insertions a `malloc`, without the lock.
  @inline(__always)
  package func lock(_ lock: borrowing SpinLock, insertions: Int = 0) {
    lock.lock()
    unsafe map.pointee.tree.pool.isFed = true
    unsafe map.pointee.tree.pool.announce(insertions)
    if insertions > 0,
      unsafe map.pointee.tree.pool.availableCount < map.pointee.tree.blockCount(forInsertions: insertions)
    {
      feed(lock, insertions)
    }
  }

  /// With the lock held: gives it back to ask for memory, until there is enough; others may take of it meanwhile.
  @inline(never)
  private func feed(_ lock: borrowing SpinLock, _ insertions: Int) {
    while true {
      let count = unsafe map.pointee.tree.blockCount(forInsertions: insertions)
      let byteCount = unsafe map.pointee.tree.pool.wantedByteCount(count)
      if byteCount == 0 { break }
      lock.unlock()
      let chunk = BlockChunk(byteCount: byteCount)
      lock.lock()
      guard let chunk else { break }
      unsafe map.pointee.tree.pool.add(chunk)
    }
    // Who had the lock meanwhile has announced insertions of his own.
    unsafe map.pointee.tree.pool.announce(insertions)
  }
}
