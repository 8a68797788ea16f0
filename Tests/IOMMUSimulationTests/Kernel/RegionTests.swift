import IOMMU
import IOMMUSimulation
import Testing

/// Regions: what is reported, config space, BAR accesses, reset.
@Suite struct RegionTests {
  @Test func information() throws {
    let rig = try IOMMUFDRig()
    let info = try rig.kernel.vfioDeviceInfo(rig.device)
    #expect((info.flags, info.regionCount, info.interruptCount) == (2, 9, 5))
    let bar = try rig.kernel.vfioRegionInfo(rig.device, index: 0)
    #expect((bar.byteCount, bar.flags, bar.offset) == (1 << 20, 3, 0))
    #expect(!bar.canMap)
    let absent = try rig.kernel.vfioRegionInfo(rig.device, index: 3)
    #expect((absent.byteCount, absent.flags, absent.offset) == (0, 0, 3 << 40))
    let config = try rig.kernel.vfioRegionInfo(rig.device, index: VFIOPCI.config)
    #expect((config.byteCount, config.flags, config.offset) == (256, 3, 7 << 40))
    #expect(throws: Errno.invalidArgument) { try rig.kernel.vfioRegionInfo(rig.device, index: 8) }
    #expect(throws: Errno.invalidArgument) { try rig.kernel.vfioRegionInfo(rig.device, index: 9) }
    rig.close()
  }

  @Test func configSpace() throws {
    let rig = try IOMMUFDRig()
    let registers = rig.registers
    #expect(try registers.config(0, width: 4) == 0x11e8_1234)
    #expect(try registers.config(8, width: 4) == 0x00ff_0010)
    #expect(try registers.config(0x2c, width: 4) == 0x1100_1af4)
    // The identity cannot be written, the bus-master bit can.
    try registers.setConfig(0, 0xffff_ffff, width: 4)
    #expect(try registers.config(0, width: 4) == 0x11e8_1234)
    try registers.setConfig(4, 0, width: 2)
    #expect(try registers.config(4, width: 2) == 0)
    try registers.setConfig(4, 0xffff, width: 2)
    #expect(try registers.config(4, width: 2) == 0x0507)
    // Sizing a BAR: the address bits that it decodes.
    try registers.setConfig(0x10, 0xffff_ffff, width: 4)
    #expect(try registers.config(0x10, width: 4) == 0xfff0_0000)
    #expect(throws: Errno.badAddress) { try registers.config(254, width: 4) }
    #expect(throws: Errno.badAddress) { try registers.config(256, width: 1) }
    rig.close()
  }

  @Test func capabilities() throws {
    let rig = try IOMMUFDRig(model: NVMeModel())
    var found: [UInt64: UInt64] = [:]
    var pointer = try rig.registers.config(0x34, width: 1)
    while pointer != 0 {
      found[try rig.registers.config(pointer, width: 1)] = pointer
      pointer = try rig.registers.config(pointer + 1, width: 1)
    }
    #expect(Set(found.keys) == [0x10, 0x11])
    let msix = found[0x11]!, express = found[0x10]!
    #expect(try rig.registers.config(msix + 2, width: 2) == 64)
    #expect(try rig.registers.config(msix + 4, width: 4) == 0x2000)
    #expect(try rig.registers.config(msix + 8, width: 4) == 0x3000)
    #expect(try rig.registers.config(express + 4, width: 4) >> 28 & 1 == 1)
    #expect(try rig.kernel.vfioRegionInfo(rig.device, index: VFIOPCI.config).byteCount == 4096)
    rig.close()
  }

  @Test func stateAtOpenAndClose() throws {
    let machine = SimulatedHost(devices: [IOMMUFDRig.address: EduModel()])
    let kernel = machine.kernel
    for _ in 0..<2 {
      let iommufd = try kernel.open("/dev/iommu"), device = try kernel.open("/dev/vfio/devices/vfio0")
      _ = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
      let registers = Registers(kernel: kernel, device: device)
      #expect(try registers.config(4, width: 2) == 2, "memory on, bus master off")
      try registers.setConfig(4, 6, width: 2)
      kernel.close(device)
      kernel.close(iommufd)
    }
    #expect(machine.isClean)
  }

  @Test func accessesToABAR() throws {
    let rig = try IOMMUFDRig(model: ScratchModel(byteCount: 64))
    try rig.registers.write(0, 0x8877_6655_4433_2211, width: 8)
    #expect(
      rig.registers[2, 1] == 0x33 && rig.registers[2, 2] == 0x4433 && rig.registers[4, 4] == 0x8877_6655)
    // Cut at the end, refused beyond it and in a BAR that is not there.
    var bytes = [UInt8](repeating: 0, count: 16)
    let count = try unsafe bytes.withUnsafeMutableBytes { (buffer) throws(Errno) in
      try unsafe rig.kernel.pread(rig.device, buffer, at: 56)
    }
    #expect(count == 8)
    #expect(throws: Errno.invalidArgument) { try rig.registers.read(64, width: 4) }
    #expect(throws: Errno.invalidArgument) { try rig.registers.read(0, width: 4, region: 1) }
    #expect(throws: Errno.invalidArgument) { try rig.registers.read(0, width: 4, region: VFIOPCI.rom) }
    #expect(throws: Errno.invalidArgument) { try rig.registers.read(0, width: 4, region: 12) }
    try rig.registers.setConfig(4, 0, width: 2)
    #expect(throws: Errno.inputOutput) { try rig.registers.read(0, width: 4) }
    #expect(throws: Errno.inputOutput) { try rig.registers.write(0, 1, width: 4) }
    rig.close()
  }

  /// Notes the accesses that reach it.
  struct Recorder: DeviceModel {
    var accesses: [String] = []
    var identity: DeviceIdentity {
      DeviceIdentity(
        vendor: 1, device: 2, bars: [.memory(8192)], msixCount: 4, msixTable: (0, 4096), canReset: true)
    }
    mutating func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 {
      accesses.append("r\(width)@\(offset)")
      return 0
    }
    mutating func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {
      accesses.append("w\(width)@\(offset)")
    }
    mutating func reset() { accesses.append("reset") }
    var hasPendingTransactions: Bool { accesses.last == "w4@0" }
  }

  @Test func accessesAreCutNaturally() throws {
    let rig = try IOMMUFDRig(model: Recorder())
    let bytes = [UInt8](repeating: 0, count: 15)
    let count = try unsafe bytes.withUnsafeBytes { (buffer) throws(Errno) in
      try unsafe rig.kernel.pwrite(rig.device, buffer, at: 1)
    }
    #expect(count == 15)
    // The MSI-X table is the kernel's.
    #expect(rig.registers[4096 + 16, 4] == 0xffff_ffff)
    try rig.registers.write(4096, 1, width: 4)
    #expect(rig.registers[4096 + 64, 4] == 0)
    let recorder = rig.machine.model(at: IOMMUFDRig.address, as: Recorder.self)
    #expect(recorder?.accesses == ["reset", "w1@1", "w2@2", "w4@4", "w8@8", "r4@4160"])
    rig.close()
  }

  @Test func resets() throws {
    let rig = try IOMMUFDRig(model: Recorder())
    #expect(try rig.kernel.vfioDeviceInfo(rig.device).canReset)
    try rig.kernel.vfioReset(rig.device)
    // By the capability: Initiate Function Level Reset reads as zero and keeps the command register.
    try rig.registers.setConfig(0x88, 0x8000, width: 2)
    #expect(try rig.registers.config(0x88, width: 2) == 0)
    #expect(try rig.registers.config(4, width: 2) == 6)
    rig.kernel.close(rig.device)
    let recorder = rig.machine.model(at: IOMMUFDRig.address, as: Recorder.self)
    #expect(recorder?.accesses == ["reset", "reset", "reset", "reset"], "open, ioctl, capability, close")
    rig.close()
    let edu = try IOMMUFDRig()
    #expect(throws: Errno.invalidArgument) { try edu.kernel.vfioReset(edu.device) }
    edu.close()
  }

  @Test func transactionsPending() throws {
    let rig = try IOMMUFDRig(model: Recorder())
    #expect(try rig.registers.config(0x8a, width: 2) == 0)
    try rig.registers.write(0, 1, width: 4)
    #expect(try rig.registers.config(0x8a, width: 2) == 0x20)
    rig.close()
  }
}
