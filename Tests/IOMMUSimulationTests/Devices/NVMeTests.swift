import IOMMU
import IOMMUSimulation
import Testing

/// A queue-pair driver in a hundred lines over raw kernel calls.
private final class Driver {
  let rig: IOMMUFDRig
  /// Rings and data in the rig's memory: offset in bytes equals IOVA less `base`.
  static let base: UInt64 = 0x10_0000
  static let adminSubmission = 0x0, adminCompletion = 0x1000, submission = 0x2000, completion = 0x3000
  static let data = 0x4000
  private var tails = [0, 0], heads = [0, 0], phases: [UInt64] = [1, 1], identifier: UInt16 = 0
  let entryCount = 8

  init(_ model: NVMeModel = NVMeModel(byteCount: 1 << 20)) throws {
    rig = try IOMMUFDRig(model: model)
    try rig.map(at: Self.base, byteCount: UInt64(rig.memory.byteCount))
    try start()
  }

  func start() throws {
    (tails, heads, phases) = ([0, 0], [0, 0], [1, 1])
    for offset in stride(from: 0, to: 0x4000, by: 8) { rig.memory[offset] = 0 }
    let registers = rig.registers
    try registers.write(0x14, 0, width: 4)
    try registers.write(0x24, UInt64(entryCount - 1) * 0x1_0001, width: 4)
    try registers.write(0x28, Self.base + UInt64(Self.adminSubmission), width: 8)
    try registers.write(0x30, Self.base + UInt64(Self.adminCompletion), width: 8)
    try registers.write(0x14, 1 | 6 << 16 | 4 << 20, width: 4)
  }

  /// Sends a command and polls for its completion: status, and the first word.
  func run(
    _ queue: Int, _ opcode: UInt8, namespace: UInt32 = 0, prp1: UInt64 = 0, prp2: UInt64 = 0,
    _ words: [UInt32] = []
  ) throws -> (status: UInt64, result: UInt64)? {
    identifier &+= 1
    let ring = queue == 0 ? Self.adminSubmission : Self.submission
    let entry = ring + tails[queue] * 64
    rig.memory[entry] = UInt64(opcode) | UInt64(identifier) << 16 | UInt64(namespace) << 32
    (rig.memory[entry + 8], rig.memory[entry + 16]) = (0, 0)
    (rig.memory[entry + 24], rig.memory[entry + 32]) = (prp1, prp2)
    let padded = words + [UInt32](repeating: 0, count: 6 - words.count)
    for pair in 0..<3 {
      rig.memory[entry + 40 + pair * 8] = UInt64(padded[pair * 2]) | UInt64(padded[pair * 2 + 1]) << 32
    }
    tails[queue] = (tails[queue] + 1) % entryCount
    try rig.registers.write(0x1000 + UInt64(queue) * 8, UInt64(tails[queue]), width: 4)
    return try poll(queue)
  }

  func poll(_ queue: Int) throws -> (status: UInt64, result: UInt64)? {
    let ring = queue == 0 ? Self.adminCompletion : Self.completion
    let entry = ring + heads[queue] * 16
    let state = rig.memory[entry + 8] >> 32
    guard state >> 16 & 1 == phases[queue], state & 0xffff == UInt64(identifier) else { return nil }
    heads[queue] = (heads[queue] + 1) % entryCount
    if heads[queue] == 0 { phases[queue] ^= 1 }
    try rig.registers.write(0x1004 + UInt64(queue) * 8, UInt64(heads[queue]), width: 4)
    return (state >> 17, rig.memory[entry] & 0xffff_ffff)
  }

  func iova(_ offset: Int) -> UInt64 { Self.base + UInt64(offset) }

  func createQueues(vector: UInt32 = 1, interrupts: Bool = false) throws {
    let size = UInt32(entryCount - 1) << 16 | 1
    let first = try run(0, 5, prp1: iova(Self.completion), [size, vector << 16 | (interrupts ? 3 : 1)])
    #expect(first?.status == 0)
    #expect(try run(0, 1, prp1: iova(Self.submission), [size, 1 << 16 | 1])?.status == 0)
  }

  /// Reads or writes blocks from a place in memory with PRPs for contiguous IOVAs.
  func transfer(
    _ opcode: UInt8, block: UInt64, count: Int, at offset: Int, list: Int = 0xf000
  ) throws -> UInt64? {
    let byteCount = count * 512, inside = offset % 4096
    var second: UInt64 = 0
    if inside + byteCount > 8192 {
      var entry = list
      for page in stride(from: offset - inside + 4096, to: offset + byteCount, by: 4096) {
        rig.memory[entry] = iova(page)
        entry += 8
      }
      second = iova(list)
    } else if inside + byteCount > 4096 {
      second = iova(offset - inside + 4096)
    }
    let words = [UInt32(truncatingIfNeeded: block), UInt32(block >> 32), UInt32(count - 1)]
    return try run(1, opcode, namespace: 1, prp1: iova(offset), prp2: second, words)?.status
  }
}

/// The NVMe controller: bring-up, queues, data, and what goes wrong.
@Suite struct NVMeTests {
  @Test func bringUp() throws {
    let rig = try IOMMUFDRig(model: NVMeModel())
    let registers = rig.registers
    #expect(registers[0, 8] & 0xffff == 2047)
    #expect(registers[0, 4] == registers[0, 8] & 0xffff_ffff)
    #expect(registers[8, 4] == 0x0001_0400)
    #expect(registers[0x1c, 4] == 0)
    // Enabled without queues it is fatal; disabling clears that.
    try registers.write(0x14, 1, width: 4)
    #expect(registers[0x1c, 4] == 2)
    try registers.write(0x14, 0, width: 4)
    #expect(registers[0x1c, 4] == 0)
    rig.close()
    let driver = try Driver()
    #expect(driver.rig.registers[0x1c, 4] == 1)
    try driver.rig.registers.write(0x14, 1 | 1 << 14, width: 4)
    #expect(driver.rig.registers[0x1c, 4] == 0x9, "shutdown complete")
    driver.rig.close()
  }

  @Test func identify() throws {
    let driver = try Driver(NVMeModel(byteCount: 3 << 20, serialNumber: "X1"))
    let (memory, data) = (driver.rig.memory, Driver.data)
    #expect(try driver.run(0, 6, prp1: driver.iova(data), [1])?.status == 0)
    #expect(memory[data] & 0xffff_ffff == 0x1af4_1b36)
    #expect(memory[data + 4] == 0x2020_2020_2020_3158)
    #expect(memory[data + 77] & 0xff == 7)
    #expect(memory[data + 516] & 0xffff_ffff == 1)
    #expect(try driver.run(0, 6, namespace: 1, prp1: driver.iova(data), [0])?.status == 0)
    #expect(memory[data] == 6144)
    #expect(memory[data + 128] & 0xffff_ffff == 9 << 16)
    #expect(try driver.run(0, 6, namespace: 2, prp1: driver.iova(data), [0])?.status == 0x0b)
    #expect(try driver.run(0, 6, prp1: driver.iova(data), [2])?.status == 0)
    #expect(memory[data] == 1)
    #expect(try driver.run(0, 6, prp1: driver.iova(data), [9])?.status == 2)
    driver.rig.close()
  }

  @Test func adminCommands() throws {
    let driver = try Driver()
    #expect(try driver.run(0, 9, [7, 0x000f_000f])?.result == 0x3f_003f)
    #expect(try driver.run(0, 0x0a, [7])?.result == 0x3f_003f)
    #expect(try driver.run(0, 0x0a, [0xff])?.status == 2)
    #expect(try driver.run(0, 2, prp1: driver.iova(Driver.data), [1 | 15 << 16])?.status == 0)
    #expect(try driver.run(0, 8, [1])?.result == 1)
    #expect(try driver.run(0, 0x77)?.status == 1)
    // An event request waits for an event that never comes.
    #expect(try driver.run(0, 0x0c) == nil)
    #expect(try driver.run(0, 9, [1])?.status == 0)
    driver.rig.close()
  }

  @Test func queueRules() throws {
    let driver = try Driver()
    let size: UInt32 = 7 << 16
    func create(_ opcode: UInt8, _ words: [UInt32], _ offset: Int = Driver.completion) throws -> UInt64? {
      try driver.run(0, opcode, prp1: driver.iova(offset), words)?.status
    }
    #expect(try create(5, [size | 0, 1]) == 0x101, "queue 0 is the admin queue's")
    #expect(try create(5, [size | 65, 1]) == 0x101)
    #expect(try create(5, [0 | 1, 1]) == 0x102, "one entry is none")
    #expect(try create(5, [size | 1, 65 << 16 | 1]) == 0x108)
    #expect(try create(5, [size | 1, 0]) == 2, "not contiguous")
    #expect(try create(5, [size | 1, 1], Driver.completion + 8) == 0x13)
    #expect(try create(1, [size | 1, 1 << 16 | 1]) == 0x100, "no completion queue yet")
    #expect(try create(5, [size | 1, 1]) == 0)
    #expect(try create(5, [size | 1, 1]) == 0x101)
    #expect(try create(1, [size | 1, 1 << 16 | 1], Driver.submission) == 0)
    #expect(try driver.run(0, 4, [1])?.status == 0x10c, "still in use")
    #expect(try driver.run(0, 0, [1])?.status == 0)
    #expect(try driver.run(0, 0, [1])?.status == 0x101)
    #expect(try driver.run(0, 4, [1])?.status == 0)
    driver.rig.close()
  }

  @Test(
    arguments: [(1, 0), (8, 0), (9, 0), (8, 512), (16, 1024), (17, 0), (64, 512), (80, 4)] as [(Int, Int)])
  func readBackWhatWasWritten(_ count: Int, _ inside: Int) throws {
    let driver = try Driver()
    try driver.createQueues()
    let memory = driver.rig.memory, start = Driver.data + inside
    func pattern(_ word: Int) -> UInt64 { UInt64(word + 1) &* 0x9e37_79b9_7f4a_7c15 }
    for word in 0..<count * 64 { memory[start + word * 8] = pattern(word) }
    #expect(try driver.transfer(1, block: 5, count: count, at: start) == 0)
    let stored = driver.rig.machine.model(at: IOMMUFDRig.address, as: NVMeModel.self)!.storage
    #expect(stored.read(8, at: 5 * 512) == (0..<8).map { UInt8(truncatingIfNeeded: pattern(0) >> ($0 * 8)) })
    for word in 0..<count * 64 { memory[start + word * 8] = 0 }
    #expect(try driver.transfer(2, block: 5, count: count, at: start) == 0)
    #expect((0..<count * 64).allSatisfy { memory[start + $0 * 8] == pattern($0) })
    #expect(driver.rig.machine.faults.isEmpty)
    driver.rig.close()
  }

  @Test func transferRules() throws {
    let driver = try Driver()
    try driver.createQueues()
    let data = Driver.data
    #expect(try driver.run(1, 0, namespace: 1)?.status == 0, "flush")
    #expect(try driver.run(1, 0, namespace: .max)?.status == 0)
    #expect(try driver.run(1, 2, namespace: 3, prp1: driver.iova(data))?.status == 0x0b)
    #expect(try driver.run(1, 0x55, namespace: 1)?.status == 1)
    #expect(try driver.transfer(2, block: 2048, count: 1, at: data) == 0x80)
    #expect(try driver.transfer(2, block: 2047, count: 2, at: data) == 0x80)
    #expect(try driver.transfer(2, block: .max, count: 1, at: data) == 0x80)
    #expect(try driver.run(1, 2, namespace: 1, prp1: driver.iova(data) + 2)?.status == 0x13)
    #expect(try driver.run(1, 2, namespace: 1, prp1: driver.iova(data), prp2: 8, [0, 0, 15])?.status == 0x13)
    // Write zeroes touches no memory.
    driver.rig.memory[data] = .max
    #expect(try driver.transfer(1, block: 0, count: 1, at: data) == 0)
    #expect(try driver.run(1, 8, namespace: 1, [0, 0, 0])?.status == 0)
    #expect(try driver.transfer(2, block: 0, count: 1, at: data) == 0)
    #expect(driver.rig.memory[data] == 0)
    driver.rig.close()
  }

  @Test func refusedDataIsATransferError() throws {
    let driver = try Driver()
    try driver.createQueues()
    #expect(try driver.run(1, 2, namespace: 1, prp1: 0x5000)?.status == 4)
    #expect(try driver.run(1, 1, namespace: 1, prp1: 0x5000)?.status == 4)
    // A PRP list that cannot be read.
    #expect(
      try driver.run(1, 1, namespace: 1, prp1: driver.iova(Driver.data), prp2: 0x6000, [0, 0, 31])?.status
        == 4)
    #expect(driver.rig.machine.faults.map(\.iova) == [0x5000, 0x5000, 0x6000])
    #expect(driver.rig.registers[0x1c, 4] == 1, "not fatal")
    driver.rig.close()
  }

  @Test func refusedQueueIsFatal() throws {
    let driver = try Driver()
    try driver.createQueues()
    try driver.rig.unmap(0, .max)
    _ = try driver.run(1, 0, namespace: 1)
    #expect(driver.rig.registers[0x1c, 4] & 2 == 2)
    try driver.rig.map(at: Driver.base, byteCount: UInt64(driver.rig.memory.byteCount))
    try driver.start()
    #expect(driver.rig.registers[0x1c, 4] == 1)
    #expect(try driver.run(0, 6, prp1: driver.iova(Driver.data), [1])?.status == 0)
    driver.rig.close()
  }

  @Test func interrupts() throws {
    let driver = try Driver()
    let kernel = driver.rig.kernel
    let events = try (0..<2).map { _ in try kernel.createEvent() }
    try kernel.vfioSetInterrupts(driver.rig.device, index: VFIOPCI.msix, start: 0, events: events)
    try driver.createQueues(vector: 1, interrupts: true)
    #expect(try kernel.takeEvent(events[0]) == 2)
    #expect(try driver.run(1, 0, namespace: 1)?.status == 0)
    #expect(try kernel.waitReadable(events, timeout: .seconds(5)) == 1)
    #expect(try kernel.takeEvent(events[1]) == 1)
    events.forEach(kernel.close)
    driver.rig.close()
  }

  @Test func ringsWrap() throws {
    let driver = try Driver()
    try driver.createQueues()
    for block in 0..<100 as Range<UInt64> {
      driver.rig.memory[Driver.data] = block
      #expect(try driver.transfer(1, block: block, count: 1, at: Driver.data) == 0)
    }
    for block in 0..<100 as Range<UInt64> {
      #expect(try driver.transfer(2, block: block, count: 1, at: Driver.data) == 0)
      #expect(driver.rig.memory[Driver.data] == block)
    }
    let model = driver.rig.machine.model(at: IOMMUFDRig.address, as: NVMeModel.self)
    #expect(model?.completedCount == 202)
    driver.rig.close()
  }

  @Test func resetForgetsQueues() throws {
    let driver = try Driver()
    try driver.createQueues()
    try driver.rig.kernel.vfioReset(driver.rig.device)
    #expect(driver.rig.registers[0x1c, 4] == 0)
    #expect(driver.rig.registers[0x14, 4] == 0)
    try driver.start()
    try driver.createQueues()
    #expect(try driver.run(1, 0, namespace: 1)?.status == 0)
    driver.rig.close()
  }
}
