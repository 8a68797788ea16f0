import IOMMU
import IOMMUSimulation
import Testing

/// The command queue and the event queue: bounds, runs, overflow, and what goes wrong on request.
@Suite struct SMMUQueueTests {
  static let page = (0x12 | 7 << 48, 0x1001) as (UInt64, UInt64)

  /// Attached, with one page cached and cleared.
  func stale(_ machine: SimulatedMachine = .smmuv3Nested, depth: UInt32 = 64) throws -> SMMURig {
    let rig = try SMMURig(machine, depth: depth), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 1)
    try rig.attach(try rig.nest())
    #expect(try rig.access(0x1000))
    stage1.clear(0x1000)
    return rig
  }

  /// Runs of at most 63 commands, each with a sync.
  @Test(arguments: [(1, 1), (62, 1), (63, 1), (64, 2), (126, 2), (127, 3)])
  func runs(_ commands: Int, _ syncs: Int) throws {
    let rig = try stale()
    #expect(try rig.invalidate(Array(repeating: Self.page, count: commands)) == commands)
    #expect(rig.counters.process[.invalidateAddress] == commands && rig.counters.process.syncs == syncs)
    #expect(rig.machine.counters.processInvalidations == commands && rig.machine.counters.processSyncs == syncs)
    #expect(rig.counters.deepestQueue == min(commands, 63) + 1)
    #expect(rig.counters.queueStalls == 0)
    rig.close()
  }

  /// A queue that is shorter than a run makes the producer wait; everything is done all the same.
  @Test func shortQueues() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.commandQueueShift = 2
    let rig = try stale(machine)
    let before = rig.machine.queueCounts
    #expect(try rig.invalidate(Array(repeating: (0x10, 0), count: 9) + [Self.page]) == 10)
    #expect(rig.machine.queueCounts.since(before) == QueueCounts(commands: 10, syncs: 1, stalls: 2))
    #expect(rig.counters.queueStalls == 2 && rig.counters.deepestQueue == 4)
    #expect(rig.counters.process[.invalidateAll] == 9 && rig.counters.process.syncs == 1)
    #expect(try !rig.access(0x1000))
    rig.close()
  }

  /// §4.7: an illegal command ends the call; those before it in its run count as handled and were not sent.
  @Test func partialFailure() throws {
    let rig = try stale()
    var commands = Array(repeating: (0x40 | SMMURig.stream << 32, 52) as (UInt64, UInt64), count: 130)
    commands[69] = Self.page
    commands[70] = (0x46, 0)
    #expect(throws: Errno.inputOutput) { try rig.invalidate(commands) }
    #expect(rig.machine.kernel.invalidationProgress == InvalidationProgress(handled: 70, issued: 63))
    #expect(rig.counters.process[.invalidateATC] == 63 && rig.counters.process.syncs == 1)
    #expect(try rig.access(0x1000), "handled, says the kernel")
    // What was not sent, sent again.
    #expect(try rig.invalidate(Array(commands[63..<70])) == 7)
    #expect(rig.machine.kernel.invalidationProgress == InvalidationProgress(handled: 7, issued: 7))
    #expect(try !rig.access(0x1000))
    rig.close()
  }

  @Test func lostInvalidations() throws {
    let rig = try stale()
    rig.machine.loseInvalidation(3)
    #expect(try rig.invalidate([(0x40 | SMMURig.stream << 32, 0), (0x05 | SMMURig.stream << 32, 1), Self.page]) == 3)
    #expect(try rig.access(0x1000) && rig.counters.lostInvalidations == 1)
    #expect(rig.counters.process[.invalidateAddress] == 1, "the hardware says that it was done")
    try rig.invalidate([Self.page])
    #expect(try !rig.access(0x1000), "once")
    // The kernel's own do not count, unless they are meant.
    rig.machine.loseInvalidation(1)
    try rig.map(0x10_0000)
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0x10_0000, byteCount: 4096)
    #expect(rig.counters.lostInvalidations == 1)
    rig.machine.loseInvalidation(1, from: nil)
    try rig.map(0x10_0000)
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0x10_0000, byteCount: 4096)
    #expect(rig.counters.lostInvalidations == 2)
    rig.close()
  }

  /// A queue that stands still takes its time; after a second the kernel gives up, and the commands are done later.
  @Test func stalledQueues() throws {
    let rig = try stale()
    rig.machine.stallCommandQueue(for: .milliseconds(3))
    var before = rig.machine.chargedTime
    #expect(try rig.invalidate([(0x40 | SMMURig.stream << 32, 0)]) == 1)
    #expect(rig.machine.chargedTime - before >= .milliseconds(3))
    before = rig.machine.chargedTime
    try rig.invalidate([(0x40 | SMMURig.stream << 32, 0)])
    #expect(rig.machine.chargedTime - before < .milliseconds(1), "once")
    rig.machine.stallCommandQueue(for: .milliseconds(1200))
    before = rig.machine.chargedTime
    #expect(throws: Errno.timedOut) { try rig.invalidate([Self.page]) }
    #expect(rig.machine.chargedTime - before >= .seconds(1))
    #expect(rig.machine.chargedTime - before < .milliseconds(1100))
    #expect(rig.counters.syncTimeouts == 1)
    #expect(try rig.log().last?.contains("CMD_SYNC timeout at 0x") == true)
    #expect(try rig.access(0x1000), "not done yet")
    before = rig.machine.chargedTime
    try rig.invalidate([(0x40 | SMMURig.stream << 32, 0)])
    #expect(rig.machine.chargedTime - before >= .milliseconds(200))
    #expect(try !rig.access(0x1000))
    rig.close()
  }

  /// Others' batches take their time and their room, which the process's commands and their sync lack then. The kernel's own do not
  /// meet them.
  @Test(arguments: [(1, 63, 63, 0), (1, 64, 63, 1), (1, 64, 62, 0), (3, 63, 1, 1)])
  func crowds(_ batches: Int, _ each: Int, _ commands: Int, _ stalls: Int) throws {
    var machine = SimulatedMachine.smmuv3Nested
    (machine.smmu.commandQueueShift, machine.costs) = (7, .smmu300)
    let rig = try stale(machine)
    func charged() throws -> UInt64 {
      let before = rig.machine.chargedTime
      try rig.invalidate(Array(repeating: Self.page, count: commands))
      return (rig.machine.chargedTime - before).nanosecondCount
    }
    let alone = try charged()
    #expect(alone == 310 + UInt64(commands) * 20 + 280)
    rig.machine.crowdCommandQueue(batches, of: each)
    #expect(try charged() == alone + UInt64(batches * (each * 20 + 280)) && rig.counters.queueStalls == stalls)
    rig.machine.kernel.issue([Self.page])
    #expect(rig.counters.queueStalls == stalls)
    rig.machine.crowdCommandQueue(0)
    #expect(try charged() == alone && rig.counters.queueStalls == stalls)
    #expect(rig.counters.process[.invalidateAddress] == 3 * commands, "nothing of theirs")
    rig.close()
  }

  /// Records with sequence numbers; when they do not fit any more, one header tells of it, until one fits again.
  @Test func eventQueueOverflow() throws {
    let rig = try stale(depth: 2)
    for page in 1...5 as ClosedRange<UInt64> { #expect(try !rig.access(page << 20)) }
    var events = try rig.readEvents()
    #expect(events.map(\.flags) == [0, 0, 1] && events.map(\.sequence) == [0, 1, 4])
    #expect(events.map { $0.words.isEmpty ? 0 : $0.words[2] } == [1 << 20, 2 << 20, 0])
    #expect(try rig.readEvents().isEmpty)
    #expect(try !rig.access(0x9000))
    events = try rig.readEvents()
    #expect(events.map(\.sequence) == [5] && events.map(\.flags) == [0])
    // The header goes when an event fits after all.
    for page in 1...3 as ClosedRange<UInt64> { #expect(try !rig.access(page << 20)) }
    #expect(try rig.readEvents(byteCount: 40).map(\.sequence) == [6])
    #expect(try !rig.access(0x9000))
    #expect(try rig.readEvents().map(\.sequence) == [7, 9])
    #expect(rig.counters.events == 10 && rig.counters.lostEvents == 0, "the hardware lost none")
    rig.close()
  }

  /// Readable while there is something; records come whole.
  @Test func readingEvents() throws {
    let rig = try stale()
    func isReadable() throws -> Bool { try rig.kernel.waitReadable([rig.events], timeout: .zero) == 0 }
    #expect(try !isReadable() && rig.readEvents().isEmpty)
    #expect(try !rig.access(0x5000) && !rig.access(0x6000))
    #expect(try isReadable())
    for byteCount in [0, 7, 39] { #expect(try rig.readEvents(byteCount: byteCount).isEmpty) }
    #expect(try rig.readEvents(byteCount: 79).map { $0.words[2] } == [0x5000])
    #expect(try isReadable())
    #expect(try rig.readEvents(byteCount: 40).map { $0.words[2] } == [0x6000])
    #expect(try !isReadable())
    #expect(try !rig.access(0x7000))
    #expect(try isReadable())
    rig.close()
  }

  /// Without a queue of the process's, the kernel prints what the hardware recorded.
  @Test func eventsWithoutAQueue() throws {
    let rig = try stale()
    rig.kernel.close(rig.events)
    try rig.kernel.iommufdDestroy(rig.iommufd, id: rig.eventQueue)
    #expect(try !rig.access(0x5008, writes: false))
    let prefix = "arm-smmu-v3 arm-smmu-v3.0.auto: "
    let lines = [
      "event 0x10 received:", "\t0x0000030000000010", "\t0x0000020800000000", "\t0x0000000000005008",
      "\t0x0000000000000000",
      "event: F_TRANSLATION client: 0000:03:00.0 sid: 0x300 ssid: 0x0 iova: 0x5008 ipa: 0x0",
      "unpriv data read s1 \"Input address caused fault\" stag: 0x0",
    ]
    #expect(try rig.log() == lines.map { prefix + $0 })
    rig.memory[0] = 0
    try rig.invalidate(0x05 | SMMURig.stream << 32, 1)
    #expect(try !rig.access(0x5008))
    #expect(try rig.log().last == prefix + "event: C_BAD_CD client: 0000:03:00.0 sid: 0x300 ssid: 0x0")
    rig.close()
  }

  /// The hardware's own queue overflows: the log tells so, and not how much was lost.
  @Test func hardwareOverflow() throws {
    let rig = try stale()
    rig.machine.overflowEventQueue(losing: 2)
    for page in 1...3 as ClosedRange<UInt64> { #expect(try !rig.access(page << 20)) }
    #expect(try rig.readEvents().map { $0.words[2] } == [3 << 20])
    #expect(rig.counters.lostEvents == 2 && rig.counters.events == 1)
    let overflow = "arm-smmu-v3 arm-smmu-v3.0.auto: EVTQ overflow detected -- events lost"
    #expect(try rig.log() == [overflow, overflow])
    rig.close()
  }

  /// A storm fills the hardware's queue before the kernel gets to it.
  @Test func storms() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.eventQueueShift = 3
    let rig = try stale(machine)
    try rig.invalidate([Self.page])
    Stage1(rig).map(0x10_2000, page: 1)
    #expect(rig.machine.storm(20, from: SMMURig.address, at: 0x10_0000) == 19)
    #expect(rig.counters.events == 8 && rig.counters.lostEvents == 11)
    let addresses = try rig.readEvents().map { $0.words[2] >> 12 }
    #expect(addresses == [0x100, 0x101, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108])
    #expect(try rig.log().count == 1)
    #expect(rig.machine.storm(1, from: "nothing", at: 0) == 0)
    rig.close()
  }

  /// Other units, and machines without one, are left alone.
  @Test func misbehaviourOfNothing() throws {
    let machine = SimulatedHost(.vtd)
    machine.loseInvalidation(1)
    machine.stallCommandQueue(for: .seconds(5))
    machine.overflowEventQueue(losing: 1)
    #expect(machine.smmuCounters() == SMMUCounters())
    let rig = try stale()
    rig.machine.loseInvalidation(1, unit: 7)
    try rig.invalidate([Self.page])
    #expect(try !rig.access(0x1000))
    #expect(rig.machine.smmuCounters(unit: 7) == SMMUCounters())
    rig.close()
  }
}
