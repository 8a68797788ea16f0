import IOMMU
import IOMMUSimulation
import Testing

/// Fields of the capability registers, each against its bits.
@Suite struct VTdRegistersTests {
  @Test func defaults() {
    let registers = VTdRegisters()
    #expect(registers.hasScalableMode && registers.hasNesting && registers.hasFirstStage && registers.hasSecondStage)
    #expect(registers.hasCoherentWalks && registers.hasSupervisorRequests && !registers.hasExtendedAccessedFlags)
    #expect(registers.hasPageSelectiveInvalidation && registers.maximumAddressMask == 18)
    #expect(registers.guestAddressBits == 48 && registers.secondStageLevels == [3, 4])
    #expect(registers.has2MiBSecondStagePages && registers.has1GiBSecondStagePages && registers.has1GiBFirstStagePages)
    #expect(!registers.hasFiveLevelFirstStage && !registers.isCachingMode && !registers.needsWriteBufferFlush)
    #expect(registers.faultRegisterCount == 1 && registers.remapsInterrupts)
  }

  /// A change of a field by name changes these bits, and is what `IOMMU_GET_HW_INFO` gives.
  @Test func fields() throws {
    func words(_ change: (inout SimulatedMachine) -> Void) throws -> [UInt64] {
      var machine = SimulatedMachine.vtdNested
      change(&machine)
      machine.allowsUnsafeInterrupts = true
      let rig = try IOMMUFDRig(machine), info = try rig.kernel.hardwareInfo(rig.iommufd, device: rig.deviceID)
      #expect(info.type == 1 && info.data.count == 24 && info.data[0] == 1, "the erratum is always told")
      rig.close()
      return [8, 16].map { start in (0..<8).reduce(0) { $0 | UInt64(info.data[start + $1]) << (8 * UInt64($1)) } }
    }
    let (capability, extended) = (0x01d2_008c_222f_0606 as UInt64, 0x0001_c800_84f0_0f4a as UInt64)
    func cap(_ change: (inout VTdRegisters) -> Void) throws -> UInt64 {
      try words { change(&$0.vtdRegisters!) }[0] ^ capability
    }
    func ecap(_ change: (inout VTdRegisters) -> Void) throws -> UInt64 {
      try words { change(&$0.vtdRegisters!) }[1] ^ extended
    }
    #expect(try words { _ in } == [capability, extended])
    #expect(try cap { $0.needsWriteBufferFlush = true } == 1 << 4)
    #expect(try cap { $0.isCachingMode = true } == 1 << 7)
    #expect(try cap { $0.secondStageLevels = [3, 4, 5] } == 1 << 11)
    #expect(try cap { $0.secondStageLevels = [4] } == 1 << 9)
    #expect(try cap { $0.guestAddressBits = 57 } == (0x2f ^ 0x38) << 16)
    #expect(try cap { $0.has2MiBSecondStagePages = false } == 1 << 34)
    #expect(try cap { $0.has1GiBSecondStagePages = false } == 1 << 35)
    #expect(try cap { $0.hasPageSelectiveInvalidation = false } == 1 << 39)
    #expect(try cap { $0.faultRegisterCount = 8 } == 7 << 40)
    #expect(try cap { $0.maximumAddressMask = 9 } == (18 ^ 9) << 48)
    #expect(try cap { $0.has1GiBFirstStagePages = false } == 1 << 56)
    #expect(try cap { $0.hasFiveLevelFirstStage = true } == 1 << 60)
    #expect(try ecap { $0.hasNesting = false } == 1 << 26)
    #expect(try ecap { $0.hasSupervisorRequests = false } == 1 << 31)
    #expect(try ecap { $0.hasExtendedAccessedFlags = true } == 1 << 34)
    #expect(try ecap { $0.hasScalableMode = false } == 1 << 43)
    #expect(try ecap { $0.hasFirstStage = false } == 1 << 47)
    #expect(try ecap { $0.hasCoherentWalks = false } == 1 << 48)
    #expect(try words { $0.isolatesInterrupts = false }[1] ^ extended == 1 << 3)
    #expect(try words { $0.cachingMode = true }[0] ^ capability == 1 << 7)
  }
}
