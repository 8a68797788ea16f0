import AddressSpace
import Synchronization

/// Event records of an SMMU, as its queue in iommufd gives them.
///
/// The queue has stage-1 events of all devices of a slice; those of stage 2 are in the kernel's log. An event is kept until the
/// faults of its device are asked for, a bounded number of them.
extension ProcessOwnedSMMU {
  package func takeFaults(of device: PCIAddress) -> (faults: [Fault], isIncomplete: Bool) {
    // A queue's descriptor is not closed while it is read. The read never sleeps.
    reading.withLock { _ in
      for slice in state.withLock({ $0.slices }) {
        let events = readEvents(of: slice)
        if !events.isEmpty { state.withLock { keep(events, of: slice, in: &$0) } }
      }
    }
    return state.withLock { state in
      guard let known = state.faults.removeValue(forKey: device) else { return ([], false) }
      return (known.faults, known.isIncomplete)
    }
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

  private func keep(_ events: [SMMUEvent], of slice: SMMUSlice, in state: inout State) {
    for event in events {
      // Without a record it is not known whose were lost: all may have.
      let members = slice.members.filter { event.words == nil || $0.number == event.stream }
      for member in members {
        guard let device = member.address else { continue }
        var known = state.faults[device] ?? .init()
        if let words = event.words { known.add(words, at: kernel.now()) } else { known.isIncomplete = true }
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
struct UnreadFaults {
  var faults: [Fault] = []
  var isIncomplete = false
  /// Behind all numbers of the kernel's log.
  private static let firstSequence: UInt64 = 1 << 63

  /// An emulated SMMU reports each word of a transfer: what repeats the last fault in the same page is the same fault.
  mutating func add(_ words: [UInt64], at time: UInt64) {
    let text = "SMMU event " + words.map { "0x" + String($0, radix: 16) }.joined(separator: " ")
    let sequence = Self.firstSequence + UInt64(clamping: time)
    var fault = SMMUFaults.fault(words, KernelLogLine(sequence: sequence, time: time, text: text))
    fault.requesterID = nil
    if let last = faults.last, last.kind == fault.kind, last.access == fault.access, last.reason == fault.reason,
      last.iova.map({ $0.rawValue >> 12 }) == fault.iova.map({ $0.rawValue >> 12 })
    {
      return
    }
    if faults.count == Limits.faults {
      faults.removeFirst()
      isIncomplete = true
    }
    faults.append(fault)
  }
}

extension Limits {
  /// Reads of an event queue in a row.
  package static let eventReads = 64
}
