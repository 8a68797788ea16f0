import CIOMMU
import Glibc
import IOMMU
import Synchronization

/// Runs a trace on a target, phase by phase, each thread its own operations.
struct TraceRun {
  let trace: Trace
  let target: any BenchTarget
  var processors: [UInt32] = []
  var delay: UInt64 = 0

  /// What the phases counted, in order.
  func run() throws(DMAError) -> [BenchPart] {
    let slots = SlotTable(trace.slotCount)
    var parts: [BenchPart] = []
    // Of each slot, how many operations came before: whose turn it is.
    var turns = Array(repeating: UInt32(0), count: trace.slotCount)
    for phase in trace.phases {
      var mine = Array(repeating: [Step](), count: trace.threads)
      for operation in phase.operations {
        let slot = Int(operation.slot)
        mine[Int(operation.thread)].append(Step(operation: operation, turn: turns[slot]))
        turns[slot] += 1
      }
      // Only those who have something to do.
      let work = mine.filter { !$0.isEmpty }
      parts.append(
        try BenchThreads.run(work.count, on: processors) { [target, delay] (index, threads) throws(DMAError) in
          try Self.play(work[index], target, slots, delay, threads)
        })
    }
    return parts
  }

  /// An operation, and how many there were on its slot before it.
  private struct Step {
    let operation: Trace.Operation
    let turn: UInt32
  }

  private static func play(
    _ steps: [Step], _ target: any BenchTarget, _ slots: SlotTable, _ delay: UInt64, _ threads: BenchThreads
  ) throws(DMAError) -> BenchPart {
    _ = threads.begin()
    var part = BenchPart()
    for step in steps {
      let slot = Int(step.operation.slot)
      guard slots.wait(slot, for: step.turn, threads) else { return part }
      switch step.operation.action {
      case .map:
        slots.put(slot, try target.map(step.operation, &part))
        BenchClock.delay(delay)
      case .unmap:
        try target.unmap(slots.take(slot), &part)
        part.operations += 1
      }
      slots.pass(slot)
    }
    return part
  }
}

/// What is mapped, by slot. Threads touch a slot by turns: each hands it on to whose operation on it is next.
@safe
final class SlotTable: @unchecked Sendable {
  private let turns: UnsafeMutablePointer<Atomic<UInt32>>
  private let held: UnsafeMutablePointer<Held>
  private let count: Int

  init(_ count: Int) {
    self.count = count
    unsafe turns = .allocate(capacity: count)
    unsafe held = .allocate(capacity: count)
    for index in 0..<count {
      unsafe (turns + index).initialize(to: Atomic(0))
      unsafe (held + index).initialize(to: .nothing)
    }
  }

  deinit {
    // After an error something may be mapped still: this unmaps it.
    unsafe held.deinitialize(count: count)
    unsafe turns.deinitialize(count: count)
    unsafe held.deallocate()
    unsafe turns.deallocate()
  }

  /// False when another thread has failed meanwhile.
  func wait(_ slot: Int, for turn: UInt32, _ threads: BenchThreads) -> Bool {
    var spins = 0
    while unsafe turns[slot].load(ordering: .acquiring) != turn {
      if threads.mustStop { return false }
      spins += 1
      if spins % 64 == 0 { sched_yield() } else { ci_cpu_pause() }
    }
    return true
  }

  /// The slot is whose operation comes next.
  func pass(_ slot: Int) { unsafe turns[slot].wrappingAdd(1, ordering: .releasing) }

  func put(_ slot: Int, _ value: consuming Held) { unsafe held[slot] = value }

  func take(_ slot: Int) -> Held {
    let value = unsafe (held + slot).move()
    unsafe (held + slot).initialize(to: .nothing)
    return value
  }
}
