package import IOMMU

/// What a driver maps and unmaps, on which thread and in which order: a workload's, or one read from a file.
///
/// The order of the operations is one in which they can happen. When a trace is run, each thread does its own in that
/// order and waits for what they rest on: a slot that another thread fills or empties.
package struct Trace: Equatable, Sendable {
  package enum Action: UInt8, Sendable { case map, unmap }

  package struct Operation: Equatable, Sendable {
    package var action: Action
    package var direction: DMADirection
    package var thread: UInt16
    /// Names the mapping from its map to its unmap.
    package var slot: UInt32
    /// The buffers of a list; 1 for a single buffer.
    package var count: UInt32
    /// Bytes of each.
    package var byteCount: UInt64

    /// Bytes of all.
    package var total: UInt64 { UInt64(count) * byteCount }
  }

  /// Operations that begin when all before them are done.
  package struct Phase: Equatable, Sendable {
    package var name: String
    package var operations: [Operation]
  }

  package enum Limits {
    package static let threads = 1024, slots = 1 << 20, phases = 256, nameByteCount = 40
    /// Buffers of a list, and bytes of a mapping: 1 TiB in pages of 4 KiB.
    package static let count = 1 << 28, byteCount: UInt64 = 1 << 40
  }

  /// `W1` to `W9`, `uniform`, or what the file says.
  package var name: String
  /// What the operations follow from; 0 where nothing about them is random.
  package var seed: UInt64
  package var threads: Int
  package internal(set) var phases: [Phase] = []

  /// One more than the highest slot.
  package internal(set) var slotCount = 0
  /// The most bytes that are mapped at a time.
  package internal(set) var peakByteCount: UInt64 = 0
  /// Maps, each with its unmap.
  package internal(set) var mapCount = 0

  init(name: String, seed: UInt64, threads: Int) { (self.name, self.seed, self.threads) = (name, seed, threads) }

  /// The trace in one number, FNV-1a over its operations: equal for equal traces, whatever their names.
  package var digest: UInt64 {
    var value: UInt64 = 0xcbf2_9ce4_8422_2325
    func add(_ word: UInt64) {
      for shift in stride(from: UInt64(0), to: 64, by: 8) {
        value = (value ^ (word >> shift) & 0xff) &* 0x100_0000_01b3
      }
    }
    add(UInt64(threads))
    for phase in phases {
      add(UInt64(phase.operations.count))
      for operation in phase.operations {
        add(UInt64(operation.action.rawValue) | UInt64(operation.direction.letter) << 8)
        add(UInt64(operation.thread) << 32 | UInt64(operation.slot))
        add(UInt64(operation.count))
        add(operation.byteCount)
      }
    }
    return value
  }
}

extension DMADirection {
  /// As traces write it.
  var letter: UInt8 {
    switch self {
    case .toDevice: UInt8(ascii: "t")
    case .fromDevice: UInt8(ascii: "f")
    case .bidirectional: UInt8(ascii: "b")
    }
  }

  /// The direction of a letter; nil when no direction has it.
  init?(letter: UInt8) {
    switch letter {
    case DMADirection.toDevice.letter: self = .toDevice
    case DMADirection.fromDevice.letter: self = .fromDevice
    case DMADirection.bidirectional.letter: self = .bidirectional
    default: return nil
    }
  }
}
