import IOMMU

/// The lines that a real kernel's IOMMU driver writes about a fault.
///
/// The forms are those of Linux 7.2: `dmar_fault_do_one` of the VT-d driver, `arm_smmu_dump_event` of the SMMUv3
/// driver.
///
/// Where the process owns the tables of an SMMUv3, the hardware's event records make the lines.
struct FaultLines {
  let machine: SimulatedMachine
  /// The number of the IOMMU unit.
  var unit = 0

  func lines(_ fault: SimulatedFault, device: PCIAddress) -> [String] {
    switch machine.iommu {
    case .vtd: vtd(fault, device)
    case .smmuv3: smmu(fault, device)
    case nil: []
    }
  }

  private func vtd(_ fault: SimulatedFault, _ device: PCIAddress) -> [String] {
    let reason = vtdReason(fault)
    // A request that got as far as a PASID table entry is told with the PASID that stands for none.
    let access =
      (fault.isWrite ? "Write" : "Read") + (machine.isScalable && fault.reason != .blocked ? " PASID 0x0" : " NO_PASID")
    // The fault register holds the page's address.
    let page = String(fault.iova & ~0xfff, radix: 16)
    return [
      "DMAR: DRHD: handling fault status reg 2",
      "DMAR: [DMA \(access)] Request device [\(device)] fault addr 0x\(page) "
        + "[fault reason 0x\(hexadecimal(UInt64(reason.code), width: 2))] \(reason.text)",
    ]
  }

  private func vtdReason(_ fault: SimulatedFault) -> (code: UInt8, text: String) {
    switch (fault.reason, machine.usesFirstStage) {
    case (.blocked, _):
      machine.isScalable
        ? (0x5b, "SM: Invalid Scalable-Mode PASID Table Entry") : (0x02, "Present bit in context entry is clear")
    // Causes that only tables in memory have, which this kernel's own are not.
    case (.accessFlag, _): (0x90, "SM: A/D bit update needed in first-level entry when set to 0")
    case (.configuration, _): (0x5b, "SM: Invalid Scalable-Mode PASID Table Entry")
    case (.addressSize, false): (0x04, "Access beyond MGAW")
    case (.addressSize, true): (0x80, "SM: Address in first-level translation is not canonical")
    case (.notMapped, true): (0x71, "SM: Present bit in first-level paging entry is clear")
    case (.permission, true):
      fault.isWrite
        ? (0x85, "SM: No write permission for Write/AtomicOp request")
        : (0x86, "SM: No read permission for Read/AtomicOp request")
    case (.notMapped, false), (.permission, false):
      fault.isWrite ? (0x05, "PTE Write access is not set") : (0x06, "PTE Read access is not set")
    }
  }

  private func smmu(_ fault: SimulatedFault, _ device: PCIAddress) -> [String] {
    let event: (id: UInt8, name: String)
    switch fault.reason {
    // A blocked stream has an aborting table entry, which records no event.
    case .blocked: return []
    case .notMapped, .addressSize: event = (0x10, "F_TRANSLATION")
    case .permission: event = (0x13, "F_PERMISSION")
    case .accessFlag: event = (0x12, "F_ACCESS")
    case .configuration: event = (0x0a, "C_BAD_CD")
    }
    let stream = String(device.requesterID, radix: 16), iova = String(fault.iova, radix: 16)
    let words = record(event.id, stream: UInt64(device.requesterID), fault)
    return ["event 0x\(hexadecimal(UInt64(event.id), width: 2)) received:"].map { prefix + $0 }
      + words.map { prefix + "\t0x" + hexadecimal($0, width: 16) }
      + [
        prefix + "event: \(event.name) client: \(device) sid: 0x\(stream) ssid: 0x0 iova: 0x\(iova) ipa: 0x0",
        prefix
          + "unpriv data \(fault.isWrite ? "write" : "read") s1 \"Input address caused fault\" stag: 0x0",
      ]
  }

  var prefix: String { "arm-smmu-v3 arm-smmu-v3.\(unit).auto: " }

  /// The event record: id and stream, then in the second word bit 35 read not write and class IN, then the address.
  private func record(_ id: UInt8, stream: UInt64, _ fault: SimulatedFault) -> [UInt64] {
    let flags: UInt64 = (fault.isWrite ? 0 : 1 << 35) | 2 << 40
    return [UInt64(id) | stream << 32, flags, fault.iova, 0]
  }
}

// What the hardware itself wrote: `arm_smmu_dump_event`, `arm_smmu_evtq_thread` and `__arm_smmu_cmdq_skip_err`.

extension FaultLines {
  func lines(_ event: SMMUEvent, device: PCIAddress?) -> [String] {
    func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
    var lines = ["event 0x\(hexadecimal(UInt64(event.kind.rawValue), width: 2)) received:"]
    lines += event.words.map { "\t0x" + hexadecimal($0, width: 16) }
    var meaning =
      "event: \(event.name) client: \(device?.description ?? "(unassigned sid)") sid: \(hex(UInt64(event.stream))) ssid: 0x0"
    switch event.kind {
    case .translation, .addressSize, .access, .permission:
      meaning += " iova: \(hex(event.address)) ipa: \(hex(event.ipa))"
      let cause =
        switch event.reading {
        case .context: "CD fetch"
        case .table: "Stage 1 translation table fetch"
        case .input: "Input address caused fault"
        }
      lines += [
        meaning,
        "unpriv data \(event.isRead ? "read" : "write") \(event.isStage2 ? "s2" : "s1") \"\(cause)\" stag: 0x0",
      ]
    case .contextFetch: lines.append(meaning + " fetch_addr: \(hex(event.ipa))")
    case .badSTE, .badCD, .walkAbort: lines.append(meaning)
    }
    return lines.map { prefix + $0 }
  }

  var overflow: String { prefix + "EVTQ overflow detected -- events lost" }

  /// A command that the hardware refused: the driver puts a sync in its place.
  func lines(_ command: SMMUCommand, at consumer: UInt32) -> [String] {
    let index = hexadecimal(UInt64(consumer), width: 8)
    return [
      "CMDQ error (cons 0x\(index)): Illegal command", "skipping command in error state:",
      "\t0x" + hexadecimal(command.word0, width: 16), "\t0x" + hexadecimal(command.word1, width: 16),
    ].map { prefix + $0 }
  }

  func timeout(producer: UInt32, consumer: UInt32) -> String {
    let (producer, consumer) = (hexadecimal(UInt64(producer), width: 8), hexadecimal(UInt64(consumer), width: 8))
    return prefix + "CMD_SYNC timeout at 0x\(producer) [hwprod 0x\(producer), hwcons 0x\(consumer)]"
  }
}
