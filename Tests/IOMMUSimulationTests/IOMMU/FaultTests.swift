import IOMMU
import IOMMUSimulation
import Testing

/// Requests that are refused: what the device, the counters and the kernel's log say.
@Suite struct FaultTests {
  func lines(_ rig: IOMMUFDRig) throws -> [String] { try rig.kernel.kernelLog(from: 0).map(\.text) }

  @Test func nothingMovesWhenAPartIsRefused() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    rig.memory[4096 - 8] = 0x1111
    // The last 8 bytes of the page and 8 that are not mapped.
    #expect(try !rig.edu(0x1ff8, 16, toMemory: true))
    #expect(rig.memory[4096 - 8] == 0x1111)
    #expect(rig.machine.faults == [fault(0x2000, isWrite: true, .notMapped)])
    #expect(rig.machine.counters.bytesWritten == 0)
    #expect(rig.machine.model(at: IOMMUFDRig.address, as: EduModel.self)?.failedTransferCount == 1)
    rig.close()
  }

  func fault(_ iova: UInt64, isWrite: Bool, _ reason: SimulatedFault.Reason) -> SimulatedFault {
    SimulatedFault(device: IOMMUFDRig.address, iova: iova, isWrite: isWrite, reason: reason)
  }

  @Test func neighbouringAreasAreOneRequest() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000, offset: 0x3000)
    try rig.map(at: 0x2000, offset: 0x1000)
    rig.memory[0x3ff8] = 0xaaaa
    rig.memory[0x1000] = 0xbbbb
    #expect(try rig.edu(0x1ff8, 16, toMemory: false))
    let buffer = rig.machine.model(at: IOMMUFDRig.address, as: EduModel.self)!.buffer
    #expect(buffer[0] == 0xaa && buffer[8] == 0xbb)
    rig.close()
  }

  @Test func permissions() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000, flags: 5)
    try rig.map(at: 0x2000, offset: 4096, flags: 3)
    #expect(try rig.edu(0x1000, 8, toMemory: false))
    #expect(try !rig.edu(0x1000, 8, toMemory: true))
    #expect(try rig.edu(0x2000, 8, toMemory: true))
    #expect(try !rig.edu(0x2000, 8, toMemory: false))
    #expect(rig.machine.faults.map(\.reason) == [.permission, .permission])
    rig.close()
  }

  @Test func vtdLegacyLines() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x5000, flags: 5)
    _ = try rig.edu(0x1234, 8, toMemory: true)
    _ = try rig.edu(0x1234, 8, toMemory: false)
    _ = try rig.edu(0x5008, 8, toMemory: true)
    _ = try rig.edu(1 << 50, 8, toMemory: true)
    try rig.kernel.vfioDetach(rig.device)
    _ = try rig.edu(0x1000, 8, toMemory: true)
    let head = "DMAR: DRHD: handling fault status reg 2"
    let device = "Request device [0000:03:00.0]"
    #expect(
      try lines(rig) == [
        head,
        "DMAR: [DMA Write NO_PASID] \(device) fault addr 0x1000 [fault reason 0x05] PTE Write access is not set",
        head,
        "DMAR: [DMA Read NO_PASID] \(device) fault addr 0x1000 [fault reason 0x06] PTE Read access is not set",
        head,
        "DMAR: [DMA Write NO_PASID] \(device) fault addr 0x5000 [fault reason 0x05] PTE Write access is not set",
        head,
        "DMAR: [DMA Write NO_PASID] \(device) fault addr 0x4000000000000 [fault reason 0x04] Access beyond MGAW",
        head,
        "DMAR: [DMA Write NO_PASID] \(device) fault addr 0x1000 [fault reason 0x02] Present bit in context entry is clear",
      ])
    rig.close()
  }

  @Test(arguments: [SimulatedMachine.smmuv3, .vtdFirstStage])
  func whatMayBeWrittenMayBeRead(_ machine: SimulatedMachine) throws {
    let rig = try IOMMUFDRig(machine)
    try rig.map(at: 0x2000, flags: 3)
    #expect(try rig.edu(0x2000, 8, toMemory: false))
    #expect(try rig.edu(0x2000, 8, toMemory: true))
    rig.close()
  }

  @Test func vtdScalableLines() throws {
    let rig = try IOMMUFDRig(.vtdScalable)
    _ = try rig.edu(0x1000, 8, toMemory: true)
    try rig.kernel.vfioDetach(rig.device)
    _ = try rig.edu(0x1000, 8, toMemory: false)
    let device = "Request device [0000:03:00.0] fault addr 0x1000"
    #expect(
      try lines(rig).filter { $0.contains("[") } == [
        "DMAR: [DMA Write PASID 0x0] \(device) [fault reason 0x05] PTE Write access is not set",
        "DMAR: [DMA Read NO_PASID] \(device) [fault reason 0x5b] SM: Invalid Scalable-Mode PASID Table Entry",
      ])
    rig.close()
  }

  @Test func vtdFirstStageLines() throws {
    let rig = try IOMMUFDRig(.vtdFirstStage)
    try rig.map(at: 0x5000, flags: 5)
    _ = try rig.edu(0x1000, 8, toMemory: true)
    _ = try rig.edu(0x5000, 8, toMemory: true)
    _ = try rig.edu(1 << 50, 8, toMemory: true)
    #expect(try lines(rig).filter { $0.contains("[DMA") }.allSatisfy { $0.contains("[DMA Write PASID 0x0]") })
    let reasons = try lines(rig).compactMap { $0.split(separator: "[fault reason ").dropFirst().first }
    #expect(
      reasons == [
        "0x71] SM: Present bit in first-level paging entry is clear",
        "0x85] SM: No write permission for Write/AtomicOp request",
        "0x80] SM: Address in first-level translation is not canonical",
      ])
    rig.close()
  }

  @Test func smmuLines() throws {
    let rig = try IOMMUFDRig(.smmuv3)
    _ = try rig.edu(0x10_0010, 8, toMemory: false)
    let prefix = "arm-smmu-v3 arm-smmu-v3.0.auto: "
    #expect(
      try lines(rig) == [
        prefix + "event 0x10 received:",
        prefix + "\t0x0000030000000010", prefix + "\t0x0000020800000000", prefix + "\t0x0000000000100010",
        prefix + "\t0x0000000000000000",
        prefix + "event: F_TRANSLATION client: 0000:03:00.0 sid: 0x300 ssid: 0x0 iova: 0x100010 ipa: 0x0",
        prefix + "unpriv data read s1 \"Input address caused fault\" stag: 0x0",
      ])
    try rig.map(at: 0x5000, flags: 5)
    _ = try rig.edu(0x5000, 8, toMemory: true)
    #expect(try lines(rig).contains { $0.contains("event: F_PERMISSION client: 0000:03:00.0") })
    // A blocked stream is aborted without a word.
    let count = try lines(rig).count
    try rig.kernel.vfioDetach(rig.device)
    _ = try rig.edu(0x5000, 8, toMemory: true)
    #expect(try lines(rig).count == count)
    #expect(rig.machine.faults.last?.reason == .blocked)
    rig.close()
  }

  @Test func logContinuesWhereItWasRead() throws {
    let rig = try IOMMUFDRig()
    _ = try rig.edu(0x1000, 8, toMemory: true)
    let first = try rig.kernel.kernelLog(from: 0)
    #expect(first.map(\.sequence) == [0, 1])
    _ = try rig.edu(0x2000, 8, toMemory: true)
    let second = try rig.kernel.kernelLog(from: first.last!.sequence + 1)
    #expect(second.map(\.sequence) == [2, 3])
    #expect(second.allSatisfy { $0.time >= first[1].time })
    rig.close()
  }

  @Test func droppedAddressBits() throws {
    let rig = try IOMMUFDRig(model: EduModel(addressBits: 28))
    try rig.map(at: 0x1000)
    // Above 28 bits the device drives the rest: it writes to a page that was not meant.
    #expect(try rig.edu(1 << 28 | 0x1000, 8, toMemory: true))
    #expect(try !rig.edu(1 << 28 | 0x2000, 8, toMemory: true))
    #expect(rig.machine.faults.map(\.iova) == [0x2000])
    rig.close()
  }

  @Test func busMasterBit() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    rig.memory[0] = 0x77
    try rig.registers.setConfig(4, 2, width: 2)
    _ = try rig.edu(0x1000, 8, toMemory: true)
    #expect(rig.memory[0] == 0x77)
    #expect(rig.machine.faults.isEmpty)
    rig.close()
  }
}
