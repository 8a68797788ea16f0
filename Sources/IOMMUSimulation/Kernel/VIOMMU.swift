import IOMMU

/// A slice of a physical IOMMU in iommufd: what nested page tables, device numbers and event queues hang on.
final class VIOMMU {
  /// Stage 2 of all of it.
  let parent: HWPageTable
  /// The IOMMU that it is a slice of.
  let unit: Int
  var id: UInt32 = 0
  /// Nested page tables, vDEVICEs and event queues.
  var users = 0
  /// By the number that the process gave.
  var devices: [UInt64: VDevice] = [:]
  var eventQueue: VEventQueue?

  init(over parent: HWPageTable, unit: Int) { (self.parent, self.unit) = (parent, unit) }

  /// What the process calls a device.
  func number(of device: DeviceState) -> UInt64? { devices.first { $0.value.device === device }?.key }
}

/// A device's number in a vIOMMU: on SMMUv3 the stream id that commands and events have.
final class VDevice {
  let viommu: VIOMMU
  unowned let device: DeviceState
  let number: UInt64
  var id: UInt32 = 0

  init(_ viommu: VIOMMU, _ device: DeviceState, number: UInt64) {
    (self.viommu, self.device, self.number) = (viommu, device, number)
  }
}

/// A queue of event records for the process. Rules of `drivers/iommu/iommufd/eventq.c`.
///
/// Each record has a header: flags and a sequence number, which counts lost events too. When the queue is full, one header
/// without a record stands at its end, moves on with each event that is lost, and goes when an event fits again.
final class VEventQueue {
  let viommu: VIOMMU
  let context: IOMMUFDContext
  /// The most records.
  let depth: UInt32
  var id: UInt32 = 0
  /// The event descriptor that the process waits on, while it is open; it is readable while there is something to read.
  let descriptor: Int32
  var isOpen = true

  private struct Item {
    var flags: UInt32, sequence: UInt32
    var record: [UInt8]
  }
  private var items: [Item] = []
  private var recordCount: UInt32 = 0
  private var sequence: UInt32 = 0
  private static let lostEvents: UInt32 = 1

  init(_ viommu: VIOMMU, _ context: IOMMUFDContext, depth: UInt32) throws(Errno) {
    (self.viommu, self.context, self.depth) = (viommu, context, depth)
    descriptor = try HostSystem.createEvent()
  }

  /// Adds a record, or notes that one was lost.
  func add(_ record: [UInt8]) {
    let wasEmpty = items.isEmpty
    if items.last?.flags == Self.lostEvents { items.removeLast() }
    if recordCount == depth {
      items.append(Item(flags: Self.lostEvents, sequence: sequence, record: []))
    } else {
      items.append(Item(flags: 0, sequence: sequence, record: record))
      recordCount += 1
    }
    sequence = (sequence + 1) & 0x7fff_ffff
    if wasEmpty, isOpen { try? HostSystem.signalEvent(descriptor) }
  }

  /// Takes off what fits as a whole, headers and records.
  func take(byteCount: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    while let item = items.first, bytes.count + 8 + item.record.count <= byteCount {
      items.removeFirst()
      for word in [item.flags, item.sequence] { bytes += (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
      bytes += item.record
      if item.flags == 0 { recordCount -= 1 }
    }
    if items.isEmpty, !bytes.isEmpty { _ = try? HostSystem.takeEvent(descriptor) }
    return bytes
  }
}
