import IOMMU

/// Makes traces in which each slot is mapped and unmapped by turns.
struct TraceBuilder {
  private(set) var trace: Trace
  /// Bytes that each slot holds; 0 for one that is free.
  private var held: [UInt64] = []
  /// Slots that were freed, for those who do not choose them.
  private var free: [UInt32] = []
  private var liveByteCount: UInt64 = 0
  private(set) var liveCount = 0

  init(name: String, seed: UInt64, threads: Int) { trace = Trace(name: name, seed: seed, threads: threads) }

  /// What is wrong with an operation.
  enum Violation: Error { case alreadyMapped, notMapped, noPhase }

  mutating func beginPhase(_ name: String) { trace.phases.append(Trace.Phase(name: name, operations: [])) }

  /// Adds an operation with limits kept, which is the caller's to see to.
  mutating func add(_ operation: Trace.Operation) throws(Violation) {
    guard !trace.phases.isEmpty else { throw .noPhase }
    let slot = Int(operation.slot)
    if slot >= held.count { held += Array(repeating: 0, count: slot + 1 - held.count) }
    switch operation.action {
    case .map:
      guard held[slot] == 0 else { throw .alreadyMapped }
      held[slot] = operation.total
      liveByteCount += operation.total
      liveCount += 1
      trace.mapCount += 1
      trace.slotCount = max(trace.slotCount, slot + 1)
      trace.peakByteCount = max(trace.peakByteCount, liveByteCount)
    case .unmap:
      guard held[slot] != 0 else { throw .notMapped }
      liveByteCount -= held[slot]
      liveCount -= 1
      held[slot] = 0
    }
    trace.phases[trace.phases.count - 1].operations.append(operation)
  }

  /// Maps a buffer, or a list of them, and returns its slot.
  mutating func map(
    _ byteCount: UInt64, _ direction: DMADirection, count: Int = 1, thread: Int = 0
  ) -> UInt32 {
    let slot = free.popLast() ?? UInt32(held.count)
    try! add(
      Trace.Operation(
        action: .map, direction: direction, thread: UInt16(thread), slot: slot, count: UInt32(count),
        byteCount: byteCount))
    return slot
  }

  mutating func unmap(_ slot: UInt32, thread: Int = 0) {
    try! add(
      Trace.Operation(
        action: .unmap, direction: .bidirectional, thread: UInt16(thread), slot: slot, count: 1, byteCount: 0))
    free.append(slot)
  }
}
