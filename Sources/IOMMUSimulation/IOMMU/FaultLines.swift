import IOMMU

/// The lines that a real kernel's IOMMU driver writes about a fault.
///
/// The forms are those of Linux 7.2: `dmar_fault_do_one` of the VT-d driver, `arm_smmu_dump_event` of the SMMUv3
/// driver.
struct FaultLines {
  let machine: SimulatedMachine

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
    let isScalable = machine.usesScalableMode || machine.usesFirstStage
    let access =
      (fault.isWrite ? "Write" : "Read") + (isScalable && fault.reason != .blocked ? " PASID 0x0" : " NO_PASID")
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
      machine.usesScalableMode || machine.usesFirstStage
        ? (0x5b, "SM: Invalid Scalable-Mode PASID Table Entry") : (0x02, "Present bit in context entry is clear")
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
    }
    let stream = String(device.requesterID, radix: 16), iova = String(fault.iova, radix: 16)
    let words = record(event.id, stream: UInt64(device.requesterID), fault)
    let prefix = "arm-smmu-v3 arm-smmu-v3.0.auto: "
    return ["event 0x\(hexadecimal(UInt64(event.id), width: 2)) received:"].map { prefix + $0 }
      + words.map { prefix + "\t0x" + hexadecimal($0, width: 16) }
      + [
        prefix + "event: \(event.name) client: \(device) sid: 0x\(stream) ssid: 0x0 iova: 0x\(iova) ipa: 0x0",
        prefix
          + "unpriv data \(fault.isWrite ? "write" : "read") s1 \"Input address caused fault\" stag: 0x0",
      ]
  }

  /// The event record: id and stream, then in the second word bit 35 read not write and class IN, then the address.
  private func record(_ id: UInt8, stream: UInt64, _ fault: SimulatedFault) -> [UInt64] {
    let flags: UInt64 = (fault.isWrite ? 0 : 1 << 35) | 2 << 40
    return [UInt64(id) | stream << 32, flags, fault.iova, 0]
  }
}
