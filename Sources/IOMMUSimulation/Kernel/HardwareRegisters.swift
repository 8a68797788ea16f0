import IOMMU

/// The identification registers of the simulated IOMMU, as `IOMMU_GET_HW_INFO` gives them and sysfs shows them.
///
/// VT-d's values are the machine's where it is hardware, else those of an emulator's in the same mode, which offer no nesting;
/// SMMUv3's are the machine's.
struct HardwareRegisters {
  let machine: SimulatedMachine
  let kind: SimulatedMachine.IOMMUKind

  init(_ machine: SimulatedMachine, _ kind: SimulatedMachine.IOMMUKind) {
    (self.machine, self.kind) = (machine, kind)
  }

  /// CAP: the maximum address width is in bits 21:16, minus one; bit 7 is caching mode.
  var capability: UInt64 {
    if let registers = machine.effectiveVTdRegisters { return registers.capability }
    let base: UInt64 = machine.usesFirstStage ? 0x01d2_008c_222f_0606 : 0x00d2_008c_222f_0606
    let width = UInt64(machine.addressBits - 1) << 16
    return base & ~(0x3f << 16) | width | (machine.cachingMode ? 1 << 7 : 0)
  }

  /// ECAP: interrupt remapping is bit 3; scalable mode, second-stage and first-stage tables are bits 43, 46 and 47.
  var extendedCapability: UInt64 {
    if let registers = machine.effectiveVTdRegisters { return registers.extendedCapability }
    let base: UInt64 =
      machine.usesFirstStage
      ? 0x0000_8800_00f0_0f4a : machine.usesScalableMode ? 0x0000_4800_80f0_0f4a : 0x0000_0000_00f0_0f4a
    return machine.isolatesInterrupts ? base | 1 << 3 : base & ~(1 << 3)
  }

  /// IDR0 to IDR5, IIDR, AIDR.
  var identification: [UInt32] { machine.smmu.words }

  var hardwareInfo: HardwareInfo {
    // Capability bit 3: no ATS.
    switch kind {
    case .vtd:
      var data = Self.bytes(UInt32(1)) + Self.bytes(UInt32(0))
      data += Self.bytes(capability) + Self.bytes(extendedCapability)
      return HardwareInfo(type: 1, data: data, capabilities: 8)
    case .smmuv3:
      let words = identification
      let data = Self.bytes(UInt32(0)) + Self.bytes(UInt32(0)) + words.flatMap(Self.bytes)
      return HardwareInfo(type: 2, data: data, capabilities: 8)
    }
  }

  private static func bytes(_ value: some FixedWidthInteger) -> [UInt8] {
    (0..<value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }
}

/// A stretch of addresses that devices may not use for DMA, as sysfs lists it.
struct ReservedSpan {
  let span: Span64
  /// `direct`, `msi` or `reserved`.
  let type: String
}

extension KernelState {
  /// What the IOMMU and the firmware reserve for a device.
  func reservedRegions(of device: DeviceState) -> [ReservedSpan] {
    var regions = device.spec.directRegions.filter { !$0.isEmpty }.map {
      ReservedSpan(span: Span64(start: $0.lowerBound, last: $0.upperBound - 1), type: "direct")
    }
    switch machine.iommu {
    case .vtd: regions.append(ReservedSpan(span: Span64(start: 0xfee0_0000, last: 0xfeef_ffff), type: "msi"))
    case .smmuv3: regions.append(ReservedSpan(span: Span64(start: 0x800_0000, last: 0x80f_ffff), type: "msi"))
    case nil: break
    }
    return regions.sorted { $0.span.start < $1.span.start }
  }
}
