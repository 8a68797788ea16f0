/// Why a request was not translated: fault reasons of chapter 7 of the VT-d specification, with the text that Linux prints.
enum VTdReason: UInt8 {
  case contextNotPresent = 0x02, beyondWidth = 0x04, noWrite = 0x05, noRead = 0x06
  case entryNotPresent = 0x59, invalidEntry = 0x5b
  case firstNotPresent = 0x71, firstReserved = 0x72, firstBeyondWidth = 0x74
  case rootUnreadable = 0x75, tableUnreadable = 0x76, tableUnwritable = 0x77, secondPermission = 0x79
  case notCanonical = 0x80, supervisor = 0x81, beyondHardware = 0x83
  case firstNoWrite = 0x85, interruptAddress = 0x87

  /// Of `dma_remap_fault_reasons` and `dma_remap_sm_fault_reasons`.
  var text: String {
    switch self {
    case .contextNotPresent: "Present bit in context entry is clear"
    case .beyondWidth: "Access beyond MGAW"
    case .noWrite: "PTE Write access is not set"
    case .noRead: "PTE Read access is not set"
    case .entryNotPresent: "SM: Present bit in PASID Table Entry is clear"
    case .invalidEntry: "SM: Invalid Scalable-Mode PASID Table Entry"
    case .firstNotPresent: "SM: Present bit in first-level paging entry is clear"
    case .firstReserved: "SM: Non-zero reserved field set in first-level paging entry"
    case .firstBeyondWidth: "SM: First-level entry address beyond MGAW in Nested translation"
    case .rootUnreadable: "SM: Read permission error in FL-PML4 entry in Nested translation"
    case .tableUnreadable: "SM: Read permission error in first-level paging entry in Nested translation"
    case .tableUnwritable: "SM: Write permission error in first-level paging entry in Nested translation"
    case .secondPermission: "SM: Read/Write permission error in second-level paging entry"
    case .notCanonical: "SM: Address in first-level translation is not canonical"
    case .supervisor: "SM: U/S set 0 for first-level translation with user privilege"
    case .beyondHardware: "SM: Address beyond the DMA hardware max"
    case .firstNoWrite: "SM: No write permission for Write/AtomicOp request"
    case .interruptAddress: "SM: Invalid address-interrupt address"
    }
  }
}

/// A request that was not translated.
struct VTdFault: Error {
  var reason: VTdReason
  /// The input address.
  var address: UInt64
  /// Whether nothing is there at all, where the reason says of both that a right is missing.
  var isAbsent = false

  /// The same in the simulated machine's words.
  var simulated: SimulatedFault.Reason {
    switch reason {
    case .contextNotPresent, .entryNotPresent: .blocked
    case .invalidEntry, .rootUnreadable, .tableUnreadable, .firstReserved, .interruptAddress: .configuration
    case .beyondWidth, .firstBeyondWidth, .notCanonical, .beyondHardware: .addressSize
    case .tableUnwritable: .accessFlag
    case .firstNotPresent: .notMapped
    case .secondPermission, .noWrite, .noRead: isAbsent ? .notMapped : .permission
    case .supervisor, .firstNoWrite: .permission
    }
  }
}

/// A fault recording register: 16 bytes in the layout of chapter 11.4.14.
struct VTdFaultRecord: Equatable, Sendable {
  var words: [UInt64]

  init(_ fault: VTdFault, source: UInt32, isWrite: Bool, isScalable: Bool) {
    // F; T1, which is 1 for a read; FR; PP with the PASID that stands for none; SID.
    var word = 1 << 63 | (isWrite ? 0 : 1 << 62) | UInt64(fault.reason.rawValue) << 32 | UInt64(source & 0xffff)
    if isScalable { word |= 1 << 31 }
    words = [fault.address & ~0xfff, word]
  }

  var reason: VTdReason { VTdReason(rawValue: UInt8(truncatingIfNeeded: words[1] >> 32))! }
  var source: UInt32 { UInt32(words[1] & 0xffff) }
  var isWrite: Bool { words[1] >> 62 & 1 == 0 }
  var hasPASID: Bool { words[1] >> 31 & 1 == 1 }
  var address: UInt64 { words[0] }
}

// What the kernel's driver prints of it: `dmar_fault` and `dmar_fault_do_one`.

extension FaultLines {
  /// - Parameter isOverflow: Whether faults were lost since the registers were read last (`FSTS.PFO`).
  func lines(_ record: VTdFaultRecord, device: String, isOverflow: Bool) -> [String] {
    let access = (record.isWrite ? "Write" : "Read") + (record.hasPASID ? " PASID 0x0" : " NO_PASID")
    return [
      "DMAR: DRHD: handling fault status reg \(isOverflow ? 3 : 2)",
      "DMAR: [DMA \(access)] Request device [\(device)] fault addr 0x\(String(record.address, radix: 16)) "
        + "[fault reason 0x\(hexadecimal(UInt64(record.reason.rawValue), width: 2))] \(record.reason.text)",
    ]
  }
}
