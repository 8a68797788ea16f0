import IOMMU

/// Makes the traces of ``Workload``.
struct WorkloadMaker {
  static let page: UInt64 = 4096
  var builder: TraceBuilder
  var random: Random
  let size: Workload.Size

  /// One part of the operations when they are shared out evenly.
  private func share(_ part: Int, of parts: Int, _ operations: Int) -> Int {
    operations * (part + 1) / parts - operations * part / parts
  }

  /// Threads map and unmap by turns.
  mutating func pairs(
    _ operations: Int, _ threads: Int, _ byteCount: UInt64, _ direction: DMADirection, count: Int = 1
  ) {
    var left = operations
    while left > 0 {
      // All at once, so that each thread keeps a slot of its own.
      let slots = (0..<min(left, threads)).map { builder.map(byteCount, direction, count: count, thread: $0) }
      for (thread, slot) in slots.enumerated().reversed() { builder.unmap(slot, thread: thread) }
      left -= slots.count
    }
  }

  /// W1.
  mutating func rings() {
    for (part, descriptors) in [256, 2048].enumerated() {
      builder.beginPhase("\(descriptors) descriptors")
      // The oldest is at `next`.
      var ring: [(slot: UInt32, thread: Int)] = [], next = 0, sent: [(slot: UInt32, thread: Int)] = []
      for operation in 0..<share(part, of: 2, size.operations) {
        let thread = operation % size.threads
        if operation % 4 == 3 {
          let pages = UInt64(1 + random.next(16))
          sent.append((builder.map(pages * Self.page, .toDevice, thread: thread), thread))
          if sent.count > 64 {
            let done = sent.remove(at: random.next(8))
            builder.unmap(done.slot, thread: done.thread)
          }
        } else if ring.count < descriptors {
          ring.append((builder.map(Self.page, .fromDevice, count: 64, thread: thread), thread))
        } else {
          builder.unmap(ring[next].slot, thread: ring[next].thread)
          ring[next] = (builder.map(Self.page, .fromDevice, count: 64, thread: thread), thread)
          next = (next + 1) % descriptors
        }
      }
      for index in ring.indices {
        let done = ring[(next + index) % ring.count]
        builder.unmap(done.slot, thread: done.thread)
      }
      for done in sent { builder.unmap(done.slot, thread: done.thread) }
    }
  }

  /// W2: a queue a thread.
  mutating func requests() {
    builder.beginPhase("queues of 128")
    var queues = Array(repeating: [UInt32](), count: size.threads)
    for operation in 0..<size.operations {
      let thread = operation % size.threads
      if queues[thread].count == 128 { builder.unmap(take(&queues[thread]), thread: thread) }
      let direction: DMADirection = random.next(3) == 0 ? .toDevice : .fromDevice
      queues[thread].append(builder.map(Self.page << UInt64(random.next(6)), direction, thread: thread))
    }
    for thread in queues.indices {
      while !queues[thread].isEmpty { builder.unmap(take(&queues[thread]), thread: thread) }
    }
  }

  /// W3: at most 8192 live.
  mutating func ageing() {
    builder.beginPhase("at most 8192 live")
    var live: [UInt32] = []
    for _ in 0..<size.operations {
      if live.count == 8192 || !live.isEmpty && random.next(16) < 7 {
        builder.unmap(take(&live), thread: random.next(size.threads))
      }
      live.append(
        builder.map(UInt64(1 + random.next(64)) * Self.page, .bidirectional, thread: random.next(size.threads)))
    }
    while !live.isEmpty { builder.unmap(take(&live), thread: random.next(size.threads)) }
  }

  /// W4: the filling takes at most half of the operations.
  mutating func exhaustion() {
    let space: UInt64 = 1 << UInt64(min(32, size.addressBits)), piece = 64 * Self.page
    let filling = min(size.operations / 2, Int(space / piece))
    builder.beginPhase("fill")
    var live = (0..<filling).map { builder.map(piece, .bidirectional, thread: $0 % size.threads) }
    builder.beginPhase("churn")
    for operation in 0..<(size.operations - filling) {
      if live.count >= max(filling, 1) { builder.unmap(take(&live), thread: operation % size.threads) }
      let byteCount = UInt64(1 + random.next(64)) * Self.page
      live.append(builder.map(byteCount, .bidirectional, thread: operation % size.threads))
    }
    while !live.isEmpty { builder.unmap(take(&live), thread: live.count % size.threads) }
  }

  /// W5.
  mutating func huge() {
    let totals: [(String, UInt64)] = [("1 GiB", 1 << 30), ("64 GiB", 1 << 36), ("1 TiB", 1 << 40)]
    let pieces: [(String, UInt64)] = [("4 KiB", 1 << 12), ("2 MiB", 1 << 21), ("1 GiB", 1 << 30)]
    for part in 0..<9 {
      let (total, piece) = (totals[part / 3], pieces[part % 3])
      builder.beginPhase("\(total.0) of \(piece.0)")
      pairs(share(part, of: 9, size.operations), 1, piece.1, .bidirectional, count: Int(total.1 / piece.1))
    }
  }

  /// W6: each producer is at most 256 ahead of its consumer.
  mutating func producers(_ producers: Int) {
    builder.beginPhase("256 in flight")
    var belts = Array(repeating: [UInt32](), count: producers), next = Array(repeating: 0, count: producers)
    for operation in 0..<size.operations {
      let pair = operation % producers
      if belts[pair].count < 256 {
        belts[pair].append(builder.map(Self.page, .fromDevice, thread: 2 * pair))
      } else {
        builder.unmap(belts[pair][next[pair]], thread: 2 * pair + 1)
        belts[pair][next[pair]] = builder.map(Self.page, .fromDevice, thread: 2 * pair)
        next[pair] = (next[pair] + 1) % 256
      }
    }
    for pair in 0..<producers {
      for index in belts[pair].indices {
        builder.unmap(belts[pair][(next[pair] + index) % belts[pair].count], thread: 2 * pair + 1)
      }
    }
  }

  /// W7: of the operations, half are the pages.
  mutating func fragmentation() {
    let space = 1 << (min(32, size.addressBits) - 12)
    let pages = min(size.operations / 2, space, Trace.Limits.slots - 2)
    builder.beginPhase("fill")
    var live = (0..<pages).map { builder.map(Self.page, .bidirectional, thread: $0 % size.threads) }
    builder.beginPhase("holes")
    for index in stride(from: 0, to: pages, by: 2) { builder.unmap(live[index], thread: index % size.threads) }
    live = live.indices.filter { $0 % 2 == 1 }.map { live[$0] }
    builder.beginPhase("64 pages")
    for operation in 0..<(size.operations - pages) {
      let thread = operation % size.threads
      if operation % 2 == 0 || live.isEmpty {
        builder.unmap(builder.map(64 * Self.page, .bidirectional, thread: thread), thread: thread)
      } else {
        builder.unmap(take(&live), thread: thread)
        live.append(builder.map(Self.page, .bidirectional, thread: thread))
      }
    }
    while !live.isEmpty { builder.unmap(take(&live), thread: live.count % size.threads) }
  }

  /// W9: as many buffers as fill three quarters of the space below 4 GiB, or half of the operations' share.
  mutating func resizing() {
    let space: UInt64 = 1 << UInt64(min(32, size.addressBits)), sizes: [UInt64] = [4, 16, 64, 4, 128]
    for (part, kibibytes) in sizes.enumerated() {
      builder.beginPhase("buffers of \(kibibytes) KiB")
      let share = share(part, of: sizes.count, size.operations), byteCount = kibibytes << 10
      let count = max(min((share + 1) / 2, Int(space / 4 * 3 / byteCount)), 1)
      var ring: [UInt32] = []
      for operation in 0..<share {
        let thread = operation % size.threads
        if ring.count < count {
          ring.append(builder.map(byteCount, .fromDevice, thread: thread))
        } else {
          builder.unmap(ring[operation % count], thread: thread)
          ring[operation % count] = builder.map(byteCount, .fromDevice, thread: thread)
        }
      }
      for (index, slot) in ring.enumerated() { builder.unmap(slot, thread: index % size.threads) }
    }
  }

  /// W8.
  mutating func grid() {
    for (row, threads) in [1, 2, 4, 8, 16].enumerated() {
      for (column, pages) in [1, 8, 64].enumerated() {
        let threads = min(threads, builder.trace.threads)
        builder.beginPhase("\(counted(threads, "thread")), \(counted(pages, "page"))")
        pairs(
          share(3 * row + column, of: 15, size.operations), threads, UInt64(pages) * Self.page, .bidirectional)
      }
    }
  }

  /// Takes any one out.
  private mutating func take(_ slots: inout [UInt32]) -> UInt32 {
    slots.swapAt(random.next(slots.count), slots.count - 1)
    return slots.removeLast()
  }
}
