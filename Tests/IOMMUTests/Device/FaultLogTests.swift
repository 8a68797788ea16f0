import AddressSpaceModels
import IOMMU
import Synchronization
import Testing

@Suite("Fault log")
struct FaultLogTests {
  private static func line(_ address: UInt64, device: String = "00:01.0") -> String {
    "DMAR: [DMA Write NO_PASID] Request device [\(device)] fault addr 0x\(String(address, radix: 16)) "
      + "[fault reason 0x05] PTE Write access is not set"
  }

  private func log(_ kernel: TestKernel, _ device: String = "0000:00:01.0") -> FaultLog {
    FaultLog(kernel: kernel, device: PCIAddress(device)!)
  }

  // MARK: Collecting

  @Test func whatWasLoggedBeforeIsNotTold() {
    let kernel = TestKernel()
    kernel.log([Self.line(1)])
    let log = log(kernel)
    kernel.log([Self.line(2)])
    #expect(log.collect().faults.map(\.iova) == [IOVA(2)])
  }

  @Test func itIsReadAPieceAtATime() {
    let kernel = TestKernel()
    let log = log(kernel)
    kernel.log([Self.line(1), "something else"])
    #expect(log.collect().count == 1)
    kernel.log([Self.line(2)])
    let report = log.collect()
    #expect(report.faults.map(\.iova) == [IOVA(1), IOVA(2)])
    #expect(report.faults.map(\.time) == [.microseconds(100), .microseconds(102)])
    #expect(log.collect() == report)
    #expect(!report.mayBeIncomplete)
    #expect(kernel.calls.suffix(2) == ["kernelLog 102", "kernelLog 103"])
  }

  @Test func aMessageMayBeCutBetweenPieces() {
    let kernel = TestKernel()
    let log = log(kernel)
    let lines = FaultParserTests.record + FaultParserTests.meaning
    for (index, line) in lines.enumerated() {
      kernel.log([line])
      #expect(log.collect().count == (index < 4 ? 0 : 1))
    }
    #expect(log.collect().faults.first?.device == "0000:00:01.0")
  }

  @Test func theLatestAreKeptAndAllAreCounted() {
    let kernel = TestKernel()
    let log = log(kernel)
    kernel.log((0..<1000).map { Self.line($0) })
    let report = log.collect()
    #expect(report.count == 1000)
    #expect(report.faults.count == Limits.faults)
    #expect(report.faults.last?.iova == IOVA(999))
    #expect(report.faults.first?.iova == IOVA(UInt64(1000 - Limits.faults)))
  }

  // MARK: Whose

  @Test func onlyTheDevicesOwnAreTold() {
    let kernel = TestKernel()
    let log = log(kernel)
    kernel.log([
      Self.line(1, device: "00:02.0"), Self.line(2, device: "00:01.1"), Self.line(3, device: "0001:00:01.0"),
      Self.line(4), Self.line(5, device: "0000:00:01.0"),
    ])
    #expect(log.collect().faults.map(\.iova) == [IOVA(4), IOVA(5)])
  }

  @Test func withoutADomainAnyIsMeant() {
    let kernel = TestKernel()
    let log = log(kernel, "0005:00:01.0")
    kernel.log([Self.line(1), Self.line(2, device: "0000:00:01.0")])
    #expect(log.collect().faults.map(\.iova) == [IOVA(1)])
  }

  @Test func streamsMayBeNumberedOtherwise() {
    let lines = FaultParserTests.record
    #expect(FaultParserTests.report(lines, requesterIDs: [0x400]).count == 0)
    #expect(FaultParserTests.report(lines, requesterIDs: [0x400, 8]).count == 1)
    #expect(FaultParserTests.report(lines, device: "0000:07:00.0", requesterIDs: [8]).count == 1)
  }

  @Test func theMeaningMayShowThatItIsAnothers() {
    let meaning = FaultParserTests.meaning.map { $0.replacing("00:01.0", with: "00:09.0") }
    let report = FaultParserTests.report(FaultParserTests.record + meaning)
    #expect(report.faults.isEmpty)
    // And that it is ours, whatever the stream is called.
    let ours = FaultParserTests.report(
      FaultParserTests.record + FaultParserTests.meaning, requesterIDs: [0x400])
    #expect(ours.faults.count == 1)
    #expect(ours.count == 1)
  }

  // MARK: What is missing

  @Test func messagesThatWereHeldBackAreCounted() {
    let report = FaultParserTests.report([
      "dmar_fault: 43 callbacks suppressed", "arm_smmu_dump_event: 2 callbacks suppressed",
      "amd_iommu_report_page_fault: 3 callbacks suppressed", "viommu_fault_handler: 4 callbacks suppressed",
      "net_ratelimit: 1000 callbacks suppressed", "callbacks suppressed",
      "dmar_fault: x callbacks suppressed",
    ])
    #expect(report.suppressed == 52)
    #expect(report.mayBeIncomplete)
  }

  @Test func countsDoNotOverflow() {
    let line = "dmar_fault: \(UInt64.max) callbacks suppressed"
    #expect(FaultParserTests.report([line, line]).suppressed == .max)
  }

  @Test func aLogThatWasOverwrittenIsTold() {
    let kernel = TestKernel()
    let log = log(kernel)
    kernel.log(["a"])
    #expect(!log.collect().hasGap)
    kernel.log(["b", "c"])
    kernel.with { $0.log.removeFirst(2) }
    #expect(log.collect().hasGap)
  }

  @Test(arguments: [
    (Errno.notPermitted, DMAError.Code.permission), (.accessDenied, .permission),
    (.noEntry, .notSupported), (.noDevice, .notSupported), (.inputOutput, .system),
  ])
  func aLogThatMayNotBeReadIsTold(_ errno: Errno, _ code: DMAError.Code) {
    let kernel = TestKernel()
    let log = log(kernel)
    kernel.fail("kernelLog", errno)
    let report = log.collect()
    #expect(report.unreadable?.code == code)
    #expect(report.unreadable?.errno == errno)
    #expect(report.unreadable?.operation == "read /dev/kmsg")
    #expect(report.mayBeIncomplete)
    #expect((report.unreadable?.remedy?.contains("CAP_SYSLOG") == true) == (code == .permission))
    #expect(log.collect().unreadable == nil, "it may be read again")
  }

  @Test func aLogThatCouldNotBeReadAtFirstBeginsWhenItCan() {
    let kernel = TestKernel()
    kernel.fail("kernelLog", .notPermitted)
    let log = log(kernel)
    kernel.log([Self.line(1)])
    let report = log.collect()
    #expect(report.count == 0, "it may be older than the device")
    #expect(report.hasGap)
    kernel.log([Self.line(2)])
    #expect(log.collect().faults.map(\.iova) == [IOVA(2)])
  }

  // MARK: Robustness

  @Test func linesOutOfOrderAreReadOnce() {
    let kernel = TestKernel()
    let log = log(kernel)
    kernel.log([Self.line(1), Self.line(2)])
    _ = log.collect()
    kernel.with { state in
      state.log += [
        state.log[0], KernelLogLine(sequence: .max, time: .max, text: Self.line(3)), state.log[1],
      ]
    }
    let report = log.collect()
    #expect(report.faults.map(\.iova) == [IOVA(1), IOVA(2), IOVA(3)])
    #expect(report.faults.last?.time == .nanoseconds(Int64.max))
  }

  @Test func threadsThatCollectTogetherReadEachLineOnce() async {
    let kernel = TestKernel()
    let log = log(kernel)
    _ = await inThreads(4) { thread in
      for round in 0..<50 {
        kernel.log([Self.line(UInt64(thread * 50 + round))])
        _ = log.collect()
      }
    }
    #expect(log.collect().count == 200)
  }

  /// Real messages with bytes changed, cut, doubled and mixed: never a trap, never more than is kept.
  @Test(arguments: [UInt64(1), 2, 3])
  func garbageIsSurvived(_ seed: UInt64) {
    var random = SplitMix64(seed: seed)
    let sources =
      FaultParserTests.record + FaultParserTests.meaning + [
        Self.line(0x1000),
        "DMAR: [INTR-REMAP] Request device [00:01.0] fault index 0x7 [fault reason 0x22] x",
        "vfio-pci 0000:00:01.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0 address=0x1 flags=0x20]",
        "virtio_iommu virtio0: page fault from EP 8 at 0x1000 [RW]",
        "dmar_fault: 43 callbacks suppressed",
      ]
    let lines = (0..<5000).map { _ in Self.mutated(sources.randomElement(using: &random)!, &random) }
    let report = FaultParserTests.report(lines)
    #expect(report.faults.count <= Limits.faults)
    #expect(report.count > 0, "some are still whole")
    let again = FaultParserTests.report(FaultParserTests.record)
    #expect(again.count == 1)
  }

  private static func mutated(_ line: String, _ random: inout SplitMix64) -> String {
    var bytes = Array(line.utf8)
    for _ in 0..<Int.random(in: 0...3, using: &random) where !bytes.isEmpty {
      let index = Int.random(in: 0..<bytes.count, using: &random)
      switch Int.random(in: 0...4, using: &random) {
      case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
      case 1: bytes.remove(at: index)
      case 2: bytes.insert(UInt8.random(in: 32...126, using: &random), at: index)
      case 3: bytes.removeSubrange(index...)
      default: bytes.insert(contentsOf: bytes[..<index], at: index)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  @Test func aLineWithoutEndIsReadToItsThousandth() {
    let long = String(repeating: "x", count: 1_000_000) + Self.line(1)
    #expect(FaultParserTests.report([long, Self.line(2)]).faults.map(\.iova) == [IOVA(2)])
  }

  @Test func manySMMUsTakeBoundedRoom() {
    let lines = (0..<500).map { "arm-smmu-v3 \($0).smmuv3: event 0x10 received:" }
    #expect(FaultParserTests.report(lines + FaultParserTests.record).count == 1)
  }
}
