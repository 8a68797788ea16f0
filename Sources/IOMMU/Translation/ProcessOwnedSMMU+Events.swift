import AddressSpace
import Synchronization

/// Event records of an SMMU, as its queue in iommufd gives them.
///
/// The queue has stage-1 events of all devices of a slice; those of stage 2 are in the kernel's log. An event is kept until the
/// faults of its device are asked for, a bounded number of them.
extension ProcessOwnedSMMU {
  package func takeFaults(of device: PCIAddress) -> UnreadFaults {
    // A queue's descriptor is not closed while it is read. The read never sleeps.
    reading.withLock { _ in
      for slice in state.withLock({ $0.slices }) {
        let events = readEvents(of: slice)
        if !events.isEmpty { state.withLock { keep(events, of: slice.viommu, in: &$0) } }
      }
    }
    return state.withLock { $0.faults.removeValue(forKey: device) ?? UnreadFaults() }
  }

  /// Destroys a slice, whose queue is closed when nobody reads it.
  func destroy(_ slice: SMMUSlice) {
    descriptor.destroy(slice) { queue in reading.withLock { _ in kernel.close(queue) } }
  }

  /// Takes what is in a slice's queue now; the descriptor never blocks.
  func readEvents(of slice: SMMUSlice) -> [SMMUEvent] {
    guard let descriptor = slice.events?.descriptor else { return [] }
    var events: [SMMUEvent] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    // As many as the queue holds at once, and no more: a device may fault without end.
    for _ in 0..<Limits.eventReads {
      let size = unsafe buffer.withUnsafeMutableBytes { bytes in
        (try? unsafe kernel.readEventQueue(descriptor, bytes)) ?? 0
      }
      if size <= 0 { break }
      events += SMMUEvent.parse(buffer.prefix(size))
    }
    return events
  }

  /// By the devices that there are now: one that has joined since the queue was looked up may have faulted before it was read.
  private func keep(_ events: [SMMUEvent], of viommu: UInt32, in state: inout State) {
    guard let slice = state.slices.first(where: { $0.viommu == viommu }) else { return }
    for event in events {
      let lost = event.lost(next: &state.nextEvent[slice.viommu, default: 0])
      for member in slice.members {
        guard let device = member.address else { continue }
        let words = member.number == event.stream ? event.words : nil
        // Nobody knows whose were lost: any device's.
        if words == nil, lost == 0 { continue }
        var known = state.faults[device] ?? .init()
        known.lost += lost
        if let words { known.add(words, at: kernel.now()) }
        state.faults[device] = known
      }
    }
  }
}

/// A record of an event queue: the hardware's four words, or that some were lost.
///
/// The sources are `struct iommufd_vevent_header` and `struct iommu_vevent_arm_smmuv3` of `include/uapi/linux/iommufd.h`.
package struct SMMUEvent: Hashable, Sendable {
  /// The counter of the queue: a gap before it means that events were lost.
  package var sequence: UInt32
  /// nil where events were lost.
  package var words: [UInt64]?

  /// The device's number.
  package var stream: UInt32 { UInt32(truncatingIfNeeded: (words?[0] ?? 0) >> 32) }
  /// Its name in the specification.
  package var name: String {
    words.map { SMMUFaults.fault($0, KernelLogLine(sequence: 0, time: 0, text: "")).reason } ?? "lost events"
  }

  /// How many events are missing up to this one, and what number the next should have: numbers count lost events too, go up to 2³¹ − 1
  /// and begin anew. Where this says itself that events were lost, its number is the last one's.
  package func lost(next: inout UInt32) -> UInt64 {
    let gap = (sequence &- next) & Self.sequenceMask
    next = (sequence &+ 1) & Self.sequenceMask
    return UInt64(gap) + (words == nil ? 1 : 0)
  }

  private static let sequenceMask: UInt32 = 0x7fff_ffff
  private static let headerLength = 8, recordLength = 32

  /// Takes records apart. A record that is cut off at the end is not one: the kernel writes whole ones.
  package static func parse(_ bytes: some Collection<UInt8>) -> [SMMUEvent] {
    var rest = bytes[...]
    var events: [SMMUEvent] = []
    while rest.count >= headerLength {
      let header = word(rest.prefix(headerLength))
      rest = rest.dropFirst(headerLength)
      var event = SMMUEvent(sequence: UInt32(truncatingIfNeeded: header >> 32), words: nil)
      // LOST_EVENTS: no record follows.
      if header & 1 == 0 {
        guard rest.count >= recordLength else { break }
        event.words = (0..<4).map { word(rest.dropFirst($0 * 8).prefix(8)) }
        rest = rest.dropFirst(recordLength)
      }
      events.append(event)
    }
    return events
  }

  private static func word(_ bytes: some Collection<UInt8>) -> UInt64 {
    var word: UInt64 = 0, shift: UInt64 = 0
    for byte in bytes {
      word |= UInt64(byte) << shift
      shift += 8
    }
    return word
  }
}

/// The faults of a device that nobody has asked for yet.
package struct UnreadFaults: Sendable {
  /// The latest, a bounded number of them, oldest first.
  package private(set) var faults: [Fault] = []
  /// How many came before those.
  package private(set) var olderCount = 0
  /// Events that were lost, of any device.
  package var lost: UInt64 = 0

  package init() {}

  /// An emulated SMMU reports each word of a transfer: what repeats the last fault in the same page is the same fault.
  package mutating func add(_ words: [UInt64], at time: UInt64) {
    let text = "SMMU event " + words.map { "0x" + String($0, radix: 16) }.joined(separator: " ")
    var fault = SMMUFaults.fault(words, KernelLogLine(sequence: 0, time: time, text: text))
    fault.requesterID = nil
    if let last = faults.last, last.kind == fault.kind, last.access == fault.access, last.reason == fault.reason,
      last.iova.map({ $0.rawValue >> 12 }) == fault.iova.map({ $0.rawValue >> 12 })
    {
      return
    }
    if faults.count == Limits.faults {
      faults.removeFirst()
      olderCount += 1
    }
    faults.append(fault)
  }
}

extension Limits {
  /// Reads of an event queue in a row.
  package static let eventReads = 64
}
