import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Faults by the event queue of a nested SMMUv3 beside those of the kernel's log: none is told twice, none is lost without being told.
@Suite struct FaultQueueTests {
  private static let nested = FaultStoryTests.ways.last!

  private static func bytes(_ words: [UInt64]) -> [UInt8] {
    words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
  }

  // MARK: Numbers

  @Test func numbersTellWhatWasLost() {
    let record: [UInt64] = [0x42 << 32 | 0x10, 0, 0x1000, 0]
    func lost(_ words: [UInt64], from first: UInt32 = 0) -> (lost: [UInt64], next: UInt32) {
      var next = first
      return (SMMUEvent.parse(Self.bytes(words)).map { $0.lost(next: &next) }, next)
    }
    #expect(lost([0] + record + [1 << 32] + record) == ([0, 0], 2))
    #expect(lost([0] + record + [3 << 32] + record) == ([0, 2], 4), "a gap, and no word of it")
    #expect(lost([0] + record + [4 << 32 | 1] + [5 << 32] + record) == ([0, 4, 0], 6), "1 to 4")
    // The numbers begin anew.
    #expect(lost([0x7fff_ffff << 32] + record + [0] + record, from: 0x7fff_ffff) == ([0, 0], 1))
    #expect(lost([1 << 32 | 1], from: 0x7fff_ffff) == ([3], 2))
  }

  @Test func theLatestAreKeptAndAllAreCounted() {
    var unread = UnreadFaults()
    for page in 0..<100 as Range<UInt64> { unread.add([0x13, 1 << 35, page << 12, 0], at: page) }
    // The same page again, and word by word.
    for word in 1..<9 as Range<UInt64> { unread.add([0x13, 1 << 35, 99 << 12 | word << 3, 0], at: 100) }
    #expect(unread.faults.count == Limits.faults && unread.olderCount == 100 - Limits.faults && unread.lost == 0)
    #expect(unread.faults.last?.iova == IOVA(99 << 12) && unread.faults.last?.stage == 1)
    let log = FaultLog(kernel: TestKernel(), device: PCIAddress("0000:00:01.0")!)
    log.add(unread)
    let report = log.collect()
    #expect(report.count == 100 && report.faults.count == Limits.faults && !report.mayBeIncomplete)
  }

  /// Events have numbers of their own, whatever the clock and the log's numbers are: each fault is new once.
  @Test func theTwoSourcesAreKeptApart() {
    let kernel = TestKernel()
    let log = FaultLog(kernel: kernel, device: PCIAddress("0000:00:01.0")!)
    func add(_ pages: UInt64...) {
      var unread = UnreadFaults()
      for page in pages { unread.add([0x13, 0, page << 12, 0], at: 7) }
      log.add(unread)
    }
    func new() -> [UInt64?] {
      _ = log.collect()
      return log.takeUnseen().map { $0.iova.map { $0.rawValue >> 12 } }
    }
    add(1, 2)
    #expect(new() == [1, 2], "at one moment")
    kernel.log(FaultParserTests.record)
    #expect(new() == [0x100], "after an event of a higher number")
    add(3)
    kernel.log(["DMAR: [DMA Write NO_PASID] Request device [00:01.0] fault addr 0x9000 [fault reason 0x05] x"])
    #expect(new() == [3, 9] && new().isEmpty)
    #expect(log.collect().faults.map(\.source) == [.eventQueue, .eventQueue, .kernelLog, .eventQueue, .kernelLog])
    #expect(log.collect().faults.allSatisfy { $0.source == .kernelLog || $0.device == "0000:00:01.0" })
    // A message whose address comes with its second line is new then.
    let meaning = "arm-smmu-v3 9050000.smmuv3: event: C_BAD_CD client: 0000:00:01.0 sid: 0x8 ssid: 0x0"
    kernel.log([meaning])
    #expect(new().isEmpty)
    kernel.log([meaning + " iova: 0xa000 ipa: 0x0"])
    #expect(new() == [10])
    for page in 20..<200 as Range<UInt64> { add(page) }
    #expect(new().count == Limits.faults && new().isEmpty)
  }

  // MARK: On a machine

  /// The queue holds 128 records: what is lost beside them is counted, and stories stay what they are.
  @Test func aQueueThatIsFull() throws {
    let rig = try Self.nested.rig(), start = IOVA(0x1000_0000), pages = Pages(1)
    let mapping = try unsafe rig.dma.map(unsafe: pages.all, .bidirectional, at: start)
    let bar = try rig.device.registers(bar: 0)
    for page in 1...200 { try EndToEndTests.transfer(bar, start + page << 12, 8, toDevice: false) }
    let report = rig.dma.faults
    #expect(report.count == 128 && report.lostEvents == 72 && report.faults.count == Limits.faults)
    #expect(report.mayBeIncomplete && !report.hasGap && !report.hasOverflow)
    #expect(report.missing == "a full event queue has lost 72 events")
    #expect(report.faults.allSatisfy { $0.story?.neighbour?.range.start == start })
    #expect(report.faults.last?.story?.distance == 127 << 12)
    // One that came alone has the same story.
    let story = try rig.write(start + 128 << 12)
    #expect(story == report.faults.last?.story && rig.dma.faults.lostEvents == 72)
    try mapping.unmap()
    rig.device.close()
  }

  /// The hardware's own queue does not say how many it has lost.
  @Test func aQueueOfTheHardwareThatIsFull() throws {
    let rig = try Self.nested.rig()
    rig.machine.overflowEventQueue(losing: 1)
    let bar = try rig.device.registers(bar: 0)
    for page in 1...2 { try EndToEndTests.transfer(bar, IOVA(0x1000_0000) + page << 12, 8, toDevice: false) }
    let report = rig.dma.faults
    #expect(report.hasOverflow && report.lostEvents == 0 && report.missing?.contains("overflowed") == true)
    #expect(report.count == 1)
    rig.device.close()
  }

  /// Two devices behind one SMMU, whose events come by one queue.
  private struct Pair: Sendable {
    let machine: SimulatedHost, kernel: FaultingKernel
    let first: Device
    static let names = ["0000:00:02.0", "0000:00:03.0"]

    init() throws {
      var description = SimulatedMachine.smmuv3Nested
      description.devices = Self.names.map { SimulatedDevice($0, EduModel(addressBits: 64)) }
      machine = SimulatedHost(description)
      kernel = FaultingKernel(machine.kernel)
      first = try Device(Self.names[0], on: Host(kernel: kernel), translation: .process)
    }

    func second() throws -> Device { try Device(Self.names[1], on: Host(kernel: kernel), sharing: first.dma) }
    /// Has a device fault.
    func fault(_ number: Int, at page: UInt64) {
      #expect(machine.storm(1, from: Self.names[number], at: page << 12) == 1)
    }
    /// Every open device may do DMA, as one may that a launcher has opened.
    func letMasterTheBus() {
      let command: [UInt8] = [6, 0]
      for descriptor in 0x4000_0000..<0x4000_0040 as Range<Int32> {
        unsafe command.withUnsafeBytes { bytes in
          _ = try? unsafe machine.kernel.pwrite(descriptor, bytes, at: UInt64(VFIOPCI.config) << 40 | 4)
        }
      }
    }
    /// The pages of the faults that a device is told of.
    static func pages(_ device: Device) -> [UInt64?] {
      device.dma.faults.faults.map { $0.iova.map { $0.rawValue >> 12 } }
    }
  }

  /// What a device did that has left is not told of the one that is opened at its address next, though nobody had asked: neither what
  /// was taken out of the queue with another's, nor what was in it still.
  @Test func theNextAtTheSameAddress() throws {
    let pair = try Pair()
    for isRead in [true, false] {
      let second = try pair.second()
      pair.fault(1, at: 0x1_0000)
      if isRead { #expect(Pair.pages(pair.first).isEmpty) }
      second.close()
      let next = try pair.second()
      #expect(Pair.pages(next).isEmpty && next.dma.faults.lostEvents == 0)
      pair.fault(1, at: 0x1_0001)
      #expect(Pair.pages(next) == [0x1_0001])
      next.close()
    }
    #expect(Pair.pages(pair.first).isEmpty && pair.first.dma.faults.lostEvents == 0)
    pair.first.close()
    #expect(pair.machine.kernel.census.pinnedBytes == 0)
  }

  /// A device is opened, and faults, while the queue is being read for another: what it did is told.
  @Test func oneThatJoinsWhileTheQueueIsRead() throws {
    let pair = try Pair(), second = Shared<Device?>(nil)
    pair.kernel.interject(before: "readEventQueue") {
      let device = try? pair.second()
      second.change { $0 = device }
      pair.fault(1, at: 0x1_0000)
    }
    #expect(Pair.pages(pair.first).isEmpty)
    let device = try #require(second.value)
    #expect(Pair.pages(device) == [0x1_0000] && pair.first.dma.faults.lostEvents == 0)
    device.close()
    pair.first.close()
  }

  /// Its first events are there before the call has returned that attaches it: they have its name by then.
  @Test func eventsDuringTheAttach() throws {
    let pair = try Pair(), before = pair.kernel.count(of: "vfioAttach"), calls = Shared(0), thread = pthread_self()
    // Asked before and after each call of this thread's; and those of others.
    pair.kernel.keepTimes { [pair] in
      guard pthread_self() == thread, pair.kernel.count(of: "vfioAttach") > before else { return 0 }
      let isAfter = calls.change { count in
        count += 1
        return count == 2
      }
      if isAfter {
        pair.letMasterTheBus()
        pair.fault(1, at: 0x1_0000)
        #expect(Pair.pages(pair.first).isEmpty)
      }
      return 0
    }
    let second = try pair.second()
    pair.kernel.keepTimes { 0 }
    #expect(calls.value >= 2 && Pair.pages(second) == [0x1_0000])
    second.close()
    pair.first.close()
  }

  /// Stage 2 is the kernel's: its faults are in the log, and the story is of the mapping that the process made all the same. In debug
  /// mode the mistakes that both ways tell are told, each once.
  @Test func stageTwo() throws {
    let found = Shared<[DebugReport]>([])
    let rig = try Self.nested.rig(DebugOptions(onReport: { report in found.change { $0.append(report) } }))
    let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 4096), .toDevice), start = mapping.address
    let first = try rig.fault(start + 8, writes: true)
    #expect(first.source == .eventQueue && first.stage == 1 && found.value.map(\.kind) == [.wrongDirection])
    Self.forgetStage2(rig.machine)
    let second = try rig.fault(start + 16, writes: false), story = try #require(second.story)
    #expect(second.source == .kernelLog && second.stage == 2)
    #expect(story.place == .live && story.mapping?.range.start == start)
    #expect(story.description.contains("whose memory stage 2 has no more"), "\(story)")
    let third = try rig.fault(start + 4096, writes: false)
    #expect(third.source == .kernelLog && third.story?.place == .gap && third.story?.distance == 0)
    #expect(found.value.map(\.kind) == [.wrongDirection, .overrun], "after one of a higher number")
    _ = rig.dma.faults
    #expect(found.value.count == 2)
    rig.device.close()
    _ = try mapping.unmap()
  }

  /// What a kernel does not do: all of stage 2 is gone, with the tables of stage 1 in it.
  private static func forgetStage2(_ machine: SimulatedHost) {
    for descriptor in 0x4000_0000..<0x4000_0010 as Range<Int32> {
      for id in 1..<32 as Range<UInt32> {
        _ = try? machine.kernel.ioasUnmap(descriptor, ioas: id, iova: 0, byteCount: .max)
      }
    }
  }
}
