import AddressSpace

/// The messages of AMD's IOMMU.
///
/// ```
/// vfio-pci 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x1000 flags=0x0020]
/// AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:01:00.0 domain=0x0000 address=0x1000 flags=0x0020]
/// ```
enum AMDFaults {
  static func read(_ text: LineScanner, _ line: KernelLogLine) -> FaultParser.Outcome {
    var text = text
    guard let before = text.upTo("AMD-Vi:"), text.skip(past: "Event logged ["), let body = text.upTo("]")
    else {
      return .nothing
    }
    var words = LineScanner(body)
    guard let event = words.word(), !event.contains("=") else { return .nothing }
    var fault = Fault(line, reason: event)
    // The kernel puts driver and address of a device that it knows before the message.
    var prefix = LineScanner(before)
    while let word = prefix.word() {
      let name = String(word.reversed().drop { $0 == ":" }.reversed())
      if PCIAddress(name) != nil { fault.device = name }
    }
    var flags: UInt64?
    while let word = words.word() {
      var field = LineScanner(word)
      switch field.upTo("=") {
      case "device": fault.device = PCIAddress(field.remainder).map { _ in field.remainder } ?? fault.device
      case "address": fault.iova = field.hexadecimal().map { IOVA($0) }
      case "flags": flags = field.hexadecimal()
      default: break
      }
    }
    fault.requesterID = fault.device.flatMap { PCIAddress($0) }.map { UInt32($0.requesterID) }
    if event == "IO_PAGE_FAULT", let flags { fault.explain(pageFaultFlags: flags) }
    return .fault(fault)
  }
}

extension Fault {
  /// The flags of an I/O page fault; the layout is in AMD's IOMMU specification, chapter 2.5.3.
  fileprivate mutating func explain(pageFaultFlags flags: UInt64) {
    let isInterrupt = flags & 1 << 3 != 0, isPresent = flags & 1 << 4 != 0, isWrite = flags & 1 << 5 != 0
    let isReserved = flags & 1 << 7 != 0
    if isInterrupt {
      (kind, iova) = (.interruptRemapping, nil)
      return
    }
    // Where nothing is present the bit is only sure when it is set.
    access = isWrite ? .write : isPresent ? .read : .unknown
    kind = isReserved ? .other : isPresent ? .permission : .translation
  }
}

/// The messages of virtio-iommu.
///
/// ```
/// virtio_iommu virtio0: page fault from EP 8 at 0x1000 [RW]
/// virtio_iommu virtio0: domain fault from EP 8 [W]
/// ```
enum VirtioFaults {
  static func read(_ text: LineScanner, _ line: KernelLogLine) -> FaultParser.Outcome {
    var text = text
    guard text.skip(past: "virtio_iommu "), text.skip(past: ": "), let reason = text.upTo(" fault from EP "),
      let endpoint = text.decimal(), let requesterID = UInt32(exactly: endpoint)
    else { return .nothing }
    // "page" is told for an address without a mapping as well as for one that is mapped for another access.
    var fault = Fault(
      line, kind: reason == "page" ? .translation : .other, requesterID: requesterID,
      reason: "\(reason) fault")
    if text.skip(past: " at "), let address = text.hexadecimal() { fault.iova = IOVA(address) }
    if text.skip(past: "["), let flags = text.upTo("]") {
      let canRead = flags.contains("R"), canWrite = flags.contains("W")
      fault.access = canRead == canWrite ? .unknown : canRead ? .read : .write
    }
    return .fault(fault)
  }
}
