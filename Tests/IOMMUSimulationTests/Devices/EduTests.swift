import IOMMU
import IOMMUSimulation
import Testing

/// The edu device as QEMU has it.
@Suite struct EduTests {
  @Test func registers() throws {
    let rig = try IOMMUFDRig()
    let registers = rig.registers
    #expect(registers[0, 4] == 0x0100_00ed)
    try registers.write(4, 0x1234_5678, width: 4)
    #expect(registers[4, 4] == 0xedcb_a987)
    try registers.write(8, 10, width: 4)
    #expect(registers[8, 4] == 3_628_800)
    // Below 0x80 only words of 32 bits.
    #expect(registers[0, 8] == .max && registers[0, 2] == 0xffff && registers[0x30, 4] == 0xffff_ffff)
    try registers.write(0x80, 0x1_2345_6789, width: 8)
    #expect(registers[0x80, 8] == 0x1_2345_6789)
    rig.close()
  }

  @Test(arguments: [1, 8, 100, 4096] as [UInt64])
  func roundTrip(_ byteCount: UInt64) throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x7000, byteCount: 0x4000)
    for word in 0..<512 { rig.memory[word * 8] = UInt64(word) &* 0x9e37_79b9_7f4a_7c15 }
    let offset = byteCount == 4096 ? 0 : UInt64(7)
    #expect(try rig.edu(0x7000 + offset, byteCount, toMemory: false))
    #expect(try rig.edu(0x9000, byteCount, toMemory: true))
    let source = unsafe UnsafeRawBufferPointer(
      start: UnsafeRawPointer(bitPattern: UInt(rig.memory.address + offset)), count: Int(byteCount))
    let target = unsafe UnsafeRawBufferPointer(
      start: UnsafeRawPointer(bitPattern: UInt(rig.memory.address + 0x2000)), count: Int(byteCount))
    #expect(unsafe source.elementsEqual(target))
    #expect(rig.machine.counters.bytesRead == byteCount && rig.machine.counters.bytesWritten == byteCount)
    rig.close()
  }

  @Test func outsideTheBufferNothingMoves() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    try rig.registers.write(0x80, 0x1000, width: 8)
    for (destination, count) in [(0x40ff9, 8), (0x41000, 1), (0x3ffff, 2), (0x40000, 4097)]
      as [(UInt64, UInt64)]
    {
      try rig.registers.write(0x88, destination, width: 8)
      try rig.registers.write(0x90, count, width: 8)
      try rig.registers.write(0x98, 1, width: 8)
    }
    let model = try #require(rig.machine.model(at: IOMMUFDRig.address, as: EduModel.self))
    #expect((model.transferCount, model.failedTransferCount) == (4, 4))
    #expect(rig.machine.counters.bytesRead == 0)
    rig.close()
  }

  @Test func interruptsWhenDone() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [event])
    try rig.registers.write(0x80, 0x1000, width: 8)
    try rig.registers.write(0x88, 0x40000, width: 8)
    try rig.registers.write(0x90, 16, width: 8)
    try rig.registers.write(0x98, 5, width: 8)
    #expect(try rig.kernel.waitReadable([event], timeout: .seconds(10)) == 0)
    #expect(rig.registers[0x24, 4] == 0x100)
    try rig.registers.write(0x64, 0x100, width: 4)
    #expect(rig.registers[0x24, 4] == 0)
    // The factorial asks for its interrupt by the status register.
    try rig.registers.write(0x20, 0x80, width: 4)
    try rig.registers.write(8, 5, width: 4)
    #expect(try rig.kernel.takeEvent(event) == 2)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func delayIsVirtual() throws {
    let rig = try IOMMUFDRig(model: EduModel(addressBits: 64, delay: .milliseconds(100)))
    try rig.map(at: 0x1000)
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [event])
    let begin = rig.kernel.now()
    for _ in 0..<100 {
      try rig.registers.write(0x80, 0x40000, width: 8)
      try rig.registers.write(0x88, 0x1000, width: 8)
      try rig.registers.write(0x90, 16, width: 8)
      try rig.registers.write(0x98, 7, width: 8)
      #expect(rig.registers[0x98, 8] & 1 == 1, "busy")
      // A new command does not disturb the one under way.
      try rig.registers.write(0x98, 1, width: 8)
      #expect(try rig.kernel.waitReadable([event], timeout: .milliseconds(1)) == nil)
      #expect(try rig.kernel.waitReadable([event], timeout: .seconds(1)) == 0)
      #expect(try rig.kernel.takeEvent(event) == 1)
      #expect(rig.registers[0x98, 8] & 1 == 0, "done")
    }
    // Ten seconds of the machine's time, which nobody waited for.
    #expect(rig.kernel.now() - begin >= 10_000_000_000)
    #expect(rig.machine.model(at: IOMMUFDRig.address, as: EduModel.self)?.transferCount == 100)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func sleepingRunsTheDevice() throws {
    let rig = try IOMMUFDRig(model: EduModel(addressBits: 64, delay: .milliseconds(100)))
    try rig.map(at: 0x1000)
    try rig.registers.write(0x80, 0x40000, width: 8)
    try rig.registers.write(0x88, 0x1000, width: 8)
    try rig.registers.write(0x90, 16, width: 8)
    try rig.registers.write(0x98, 3, width: 8)
    rig.kernel.sleep(.milliseconds(50))
    #expect(rig.registers[0x98, 8] & 1 == 1)
    rig.kernel.sleep(.milliseconds(51))
    #expect(rig.registers[0x98, 8] & 1 == 0)
    rig.close()
  }
}
