import IOMMU
import IOMMUSimulation
import Testing

/// Fields of the identification registers, each against its bits.
@Suite struct SMMURegistersTests {
  @Test func defaults() throws {
    let registers = SMMURegisters()
    #expect(registers.hasStage1 && registers.hasStage2 && registers.has16BitASIDs && registers.hasRangeInvalidation)
    #expect(registers.has4KiBGranule && registers.has16KiBGranule && registers.has64KiBGranule)
    #expect(!registers.hasStage2ForcedWriteBack && registers.substreamBits == 0)
    #expect(registers.stallModel == .terminate && registers.tableByteOrder == .little)
    #expect(registers.commandQueueShift == 19 && registers.eventQueueShift == 19 && registers.outputBits == 44)
  }

  /// A change of a field by name changes these bits, and is what `IOMMU_GET_HW_INFO` gives.
  @Test func fields() throws {
    func word(_ index: Int, _ change: (inout SMMURegisters) -> Void) throws -> UInt32 {
      var machine = SimulatedMachine.smmuv3Nested
      change(&machine.smmu)
      let rig = try IOMMUFDRig(machine)
      let data = try rig.kernel.hardwareInfo(rig.iommufd, device: rig.deviceID).data
      rig.close()
      return (0..<4).reduce(0) { $0 | UInt32(data[8 + index * 4 + $1]) << (8 * UInt32($1)) }
    }
    #expect(try word(0) { $0.hasStage1 = false } == 0x0d44_1019)
    #expect(try word(0) { $0.hasStage2 = false } == 0x0d44_101a)
    #expect(try word(0) { $0.has16BitASIDs = false } == 0x0d44_001b)
    #expect(try word(0) { $0.has16BitVMIDs = false } == 0x0d40_101b)
    #expect(try word(0) { $0.tableByteOrder = .big } == 0x0d64_101b)
    #expect(try word(0) { $0.tableByteOrder = .chosen } == 0x0d04_101b)
    #expect(try word(0) { $0.stallModel = .forced } == 0x0e44_101b)
    #expect(try word(0) { $0.stallModel = .chosen } == 0x0c44_101b)
    #expect(try word(1) { $0.commandQueueShift = 6 } == 0x00d3_0010)
    #expect(try word(1) { $0.eventQueueShift = 4 } == 0x0264_0010)
    #expect(try word(1) { $0.substreamBits = 20 } == 0x0273_0510)
    #expect(try word(3) { $0.hasRangeInvalidation = false } == 0x1014)
    #expect(try word(3) { $0.hasStage2ForcedWriteBack = true } == 0x1514)
    #expect(try word(5) { $0.outputBits = 48 } == 0x75)
    #expect(try word(5) { $0.has4KiBGranule = false } == 0x64)
    #expect(try word(5) { $0.has16KiBGranule = false } == 0x54)
    #expect(try word(5) { $0.has64KiBGranule = false } == 0x34)
    #expect(try word(6) { $0.iidr = 0x1234_5678 } == 0x1234_5678)
    #expect(try word(7) { $0.aidr = 2 } == 2)
    #expect(try word(2) { $0.idr2 = 5 } == 5 && word(4) { $0.idr4 = 6 } == 6)
  }

  @Test(arguments: [32, 36, 40, 42, 44, 48, 52])
  func outputBits(_ bits: Int) {
    var registers = SMMURegisters()
    registers.outputBits = bits
    #expect(registers.outputBits == bits)
  }
}
