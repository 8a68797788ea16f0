import Synchronization

/// Opening and closing the rings: memory of the entries comes from the kernel seam, where it can fail.
extension FlushQueue {
  /// Memory for the entries of the rings that a switch opens.
  @safe
  final class Storage: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let byteCount: Int
    /// Entries of a ring, a power of two, and how many rings.
    let depth: Int, ringCount: Int
    let kernel: any Kernel

    init(_ kernel: any Kernel, _ options: FlushQueueOptions, processors: Int) throws(Errno) {
      guard options.depth >= 2, options.depth <= 1 << 24 else { throw .invalidArgument }
      depth = 1 << (Int.bitWidth - (options.depth - 1).leadingZeroBitCount)
      ringCount = options.topology == .single ? 1 : processors
      byteCount = depth * ringCount * MemoryLayout<Entry>.stride
      unsafe base = try kernel.mapMemory(byteCount: byteCount, descriptor: -1, offset: 0)
      self.kernel = kernel
    }

    deinit { unsafe kernel.unmapMemory(base, byteCount: byteCount) }
  }

  /// Lets nothing more be queued. What waits stays.
  func close() {
    for index in 0..<ringCount {
      unsafe rings![index].lock.lock()
      unsafe rings![index].waiting.isOpen = false
      unsafe rings![index].lock.unlock()
    }
  }

  /// Opens closed and empty rings over new memory, which the caller keeps until they are closed and empty again.
  func open(_ storage: Storage, timeout: Duration) {
    // Times are added to it.
    self.timeout.store(min(timeout.saturatedNanoseconds, .max / 4), ordering: .relaxed)
    for index in 0..<storage.ringCount {
      // Fresh memory of the kernel's: zeros are entries, and pages that no entry ever reaches are never touched.
      let first = unsafe storage.base + index * storage.depth * MemoryLayout<Entry>.stride
      let entries = unsafe first.bindMemory(to: Entry.self, capacity: storage.depth)
      let ring = unsafe rings! + index
      unsafe ring.pointee.lock.lock()
      assert(unsafe !ring.pointee.waiting.isOpen && ring.pointee.waiting.head == ring.pointee.waiting.tail)
      unsafe ring.pointee.waiting.entries = entries
      unsafe (ring.pointee.waiting.head, ring.pointee.waiting.tail) = (0, 0)
      unsafe (ring.pointee.waiting.covered, ring.pointee.waiting.covering) = (0, 0)
      unsafe ring.pointee.waiting.mask = storage.depth - 1
      unsafe ring.pointee.waiting.isOpen = true
      unsafe ring.pointee.lock.unlock()
    }
  }

  /// Opens the same rings again, after a switch that did not come about.
  func reopen(_ mode: LazyMode) {
    for index in 0..<(mode == .single ? 1 : ringCount) where mode != .strict {
      unsafe rings![index].lock.lock()
      unsafe rings![index].waiting.isOpen = true
      unsafe rings![index].lock.unlock()
    }
  }
}
