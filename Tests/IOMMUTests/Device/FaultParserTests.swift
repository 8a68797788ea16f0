import IOMMU
import Testing

/// The messages of each kernel driver, as its versions write them.
@Suite("Faults in the kernel's log")
struct FaultParserTests {
  /// What a log for the device 0000:00:01.0 tells of these lines.
  static func report(
    _ lines: [String], device: String = "0000:00:01.0", requesterIDs: [UInt32]? = nil
  ) -> FaultReport {
    let kernel = TestKernel()
    let log = FaultLog(kernel: kernel, device: PCIAddress(device)!, requesterIDs: requesterIDs)
    kernel.log(lines)
    return log.collect()
  }

  private func fault(_ lines: String..., device: String = "0000:00:01.0") throws -> Fault {
    let report = Self.report(lines, device: device)
    #expect(report.count == 1)
    return try #require(report.faults.first)
  }

  // MARK: VT-d

  @Test(arguments: [
    "DMAR: [DMA Write NO_PASID] Request device [00:01.0] fault addr 0x1000 [fault reason 0x05] PTE Write access is not set",
    "DMAR: [DMA Write PASID 0x5] Request device [00:01.0] fault addr 0x1000 [fault reason 0x05] PTE Write access is not set",
    "DMAR: [DMA Write] Request device [00:01.0] PASID ffffffff fault addr 1000 [fault reason 05] PTE Write access is not set",
    "DMAR: [DMA Write] Request device [00:01.0] fault addr 1000 [fault reason 05] PTE Write access is not set",
    "DMAR: [DMA Write NO_PASID] Request device [0000:00:01.0] fault addr 0x1000 [fault reason 0x05] PTE Write access is not set ",
  ])
  func vtd(_ line: String) throws {
    let fault = try fault(line)
    #expect(fault.iova == IOVA(0x1000))
    #expect(fault.access == .write)
    #expect(fault.kind == .translation)
    #expect(fault.reason == "PTE Write access is not set")
    #expect(fault.device?.hasSuffix("00:01.0") == true)
    #expect(fault.requesterID == 8)
    #expect(fault.line == line)
  }

  @Test func vtdRead() throws {
    let fault = try fault(
      "DMAR: [DMA Read NO_PASID] Request device [00:01.0] fault addr 0xfffffffffffff000 [fault reason 0x06] PTE Read access is not set"
    )
    #expect(fault.access == .read)
    #expect(fault.iova == IOVA(0xffff_ffff_ffff_f000))
  }

  @Test(arguments: [
    ("0x04", "Access beyond MGAW", Fault.Kind.addressSize),
    ("0x02", "Present bit in context entry is clear", .other),
    ("0x59", "SM: Present bit in PASID Table is clear", .other),
    ("0x71", "SM: Present bit in first-level paging entry is clear", .translation),
    ("0x79", "SM: Read/Write permission error in second-level paging entry", .translation),
    ("0x80", "SM: Address in first-level translation is not canonical", .addressSize),
    ("0x83", "SM: Address beyond the DMA hardware max", .addressSize),
    ("0x85", "SM: No write permission for Write/AtomicOp request", .permission),
    ("0x81", "SM: U/S set 0 for first-level translation with user privilege", .permission),
    ("0x7a", "SM: Non-zero reserved field set in second-level paging entry", .other),
    ("0xff", "Unknown", .other),
  ])
  func vtdReasons(_ number: String, _ text: String, _ kind: Fault.Kind) throws {
    let fault = try fault(
      "DMAR: [DMA Read NO_PASID] Request device [00:01.0] fault addr 0x1000 [fault reason \(number)] \(text)")
    #expect(fault.kind == kind)
    #expect(fault.reason == text)
  }

  @Test(arguments: ["0x22", "34"])
  func vtdInterrupt(_ number: String) throws {
    let fault = try fault(
      "DMAR: [INTR-REMAP] Request device [00:01.0] fault index 0x7 [fault reason \(number)] Present field in the IRTE entry is clear"
    )
    #expect(fault.kind == .interruptRemapping)
    #expect(fault.iova == nil)
    #expect(fault.access == .unknown)
  }

  @Test func vtdReasonOnALineOfItsOwn() throws {
    let fault = try fault(
      "DMAR:[DMA Write] Request device [00:01.0] fault addr 1000 ",
      "DMAR:[fault reason 05] PTE Write access is not set")
    #expect(fault.reason == "PTE Write access is not set")
    #expect(fault.kind == .translation)
    #expect(fault.line.contains("Request device"))
    #expect(Self.report(["DMAR:[fault reason 05] PTE Write access is not set"]).count == 0)
  }

  /// The registers were full: what the status says, in hexadecimal and without 0x, before the faults that they had.
  @Test(arguments: ["1", "3", "93", "11 "])
  func vtdOverflow(_ status: String) {
    for line in ["DMAR: DRHD: handling fault status reg \(status)", "DMAR:DRHD: handling fault status reg \(status)"] {
      let report = Self.report([line])
      #expect(report.hasOverflow && report.count == 0 && report.missing?.contains("overflowed") == true)
    }
    // It does not come between a fault and its reason.
    let report = Self.report([
      "DMAR:[DMA Write] Request device [00:01.0] fault addr 1000 ", "DMAR:DRHD: handling fault status reg \(status)",
      "DMAR:[fault reason 05] PTE Write access is not set",
    ])
    #expect(report.hasOverflow && report.count == 1 && report.faults.first?.kind == .translation)
  }

  @Test func vtdWithoutAText() throws {
    let fault = try fault("DMAR: [DMA Read] Request device [00:01.0] fault addr 0x1000 [fault reason 0x99]")
    #expect(fault.reason == "fault reason 153")
  }

  @Test(arguments: [
    "DMAR: DRHD: handling fault status reg 2", "DMAR: DRHD: handling fault status reg 100",
    "DMAR: DRHD: handling fault status reg ", "DMAR: DRHD: handling fault status reg x1",
    "DMAR: Dump dmar0 table entries for IOVA 0x1000",
    "DMAR: [DMA Write NO_PASID] Request device [nonsense] fault addr 0x1000 [fault reason 0x05] x",
    "DMAR: [DMA Write NO_PASID] Request device [00:01.0] fault addr zzz [fault reason 0x05] x",
    "DMAR: [DMA Write NO_PASID] Request device [00:01.0] fault addr 0x10000000000000000 [fault reason 5] x",
    "DMAR: Request device [00:01.0",
    "DMAR:",
    "",
    "usb 1-1: new device",
  ])
  func otherLinesAreNoFaults(_ line: String) {
    #expect(Self.report([line]) == FaultReport())
  }

  // MARK: SMMUv3

  static let record = [
    "arm-smmu-v3 9050000.smmuv3: event 0x10 received:",
    "arm-smmu-v3 9050000.smmuv3: \t0x0000000800000010",
    "arm-smmu-v3 9050000.smmuv3: \t0x0000020000000000",
    "arm-smmu-v3 9050000.smmuv3: \t0x0000000000100000",
    "arm-smmu-v3 9050000.smmuv3: \t0x0000000000000000",
  ]
  static let meaning = [
    "arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: 0000:00:01.0 sid: 0x8 ssid: 0x0 iova: 0x100000 ipa: 0x0",
    "arm-smmu-v3 9050000.smmuv3: unpriv data write s1 \"Input address caused fault\" stag: 0x0",
  ]

  @Test func smmuRecord() throws {
    for tab in ["\t", "\\x09", "    ", ""] {
      let report = Self.report(Self.record.map { $0.replacing("\t", with: tab) })
      let fault = try #require(report.faults.first)
      #expect(report.count == 1)
      #expect(fault.iova == IOVA(0x10_0000))
      #expect(fault.access == .write)
      #expect(fault.kind == .translation)
      #expect(fault.requesterID == 8)
      #expect(fault.device == nil)
      #expect(fault.reason == "F_TRANSLATION")
    }
  }

  @Test func smmuRecordOfARead() throws {
    var lines = Self.record
    lines[2] = "arm-smmu-v3 9050000.smmuv3: \t0x0000020800000000"
    #expect(Self.report(lines).faults.first?.access == .read)
  }

  @Test(arguments: [
    ("13", "F_PERMISSION", Fault.Kind.permission, true), ("12", "F_ACCESS", .permission, true),
    ("11", "F_ADDR_SIZE", .addressSize, true), ("0a", "C_BAD_CD", .other, false),
    ("06", "F_STREAM_DISABLED", .other, false), ("7f", "event 127", .other, false),
  ])
  func smmuRecordKinds(_ id: String, _ name: String, _ kind: Fault.Kind, _ hasAddress: Bool) throws {
    var lines = Self.record
    lines[1] = "arm-smmu-v3 9050000.smmuv3: \t0x00000008000000\(id)"
    let fault = try #require(Self.report(lines).faults.first)
    #expect((fault.kind, fault.reason) == (kind, name))
    #expect((fault.iova != nil) == hasAddress)
    #expect((fault.access != .unknown) == hasAddress)
  }

  @Test func smmuMeaning() throws {
    let fault = try fault(Self.meaning[0], Self.meaning[1])
    #expect(fault.iova == IOVA(0x10_0000))
    #expect(fault.access == .write)
    #expect(fault.kind == .translation)
    #expect(fault.device == "0000:00:01.0")
    #expect(fault.requesterID == 8)
    #expect(fault.reason == "F_TRANSLATION (Input address caused fault, stage 1)")
    #expect(fault.line == Self.meaning[0])
    #expect(
      fault.description
        == "0000:00:01.0: write to 0x100000: translation (F_TRANSLATION (Input address caused fault, stage 1))"
    )
  }

  @Test func smmuRecordWithItsMeaningIsOneFault() throws {
    let report = Self.report(Self.record + Self.meaning)
    #expect(report.count == 1)
    let fault = try #require(report.faults.first)
    #expect(fault.device == "0000:00:01.0")
    #expect(fault.reason == "F_TRANSLATION (Input address caused fault, stage 1)")
    #expect(fault.line == Self.record[0])
  }

  @Test func smmuMeaningAloneHasNoAccess() throws {
    #expect(try fault(Self.meaning[0]).access == .unknown)
    #expect(try fault(Self.meaning[0], "usb 1-1: reset", Self.meaning[1]).access == .write)
  }

  @Test func smmuMeaningWithoutAnAddress() throws {
    let fault = try fault("arm-smmu-v3 x: event: C_BAD_STE client: 0000:00:01.0 sid: 0x8 ssid: 0x0")
    #expect(fault.iova == nil)
    #expect(fault.kind == .other)
    #expect(fault.reason == "C_BAD_STE")
  }

  @Test func smmuWithoutAClientIsKnownByItsStream() throws {
    let line = Self.meaning[0].replacing("0000:00:01.0", with: "(unassigned sid)")
    #expect(Self.report([line]).faults.first?.requesterID == 8)
    #expect(Self.report([line]).faults.first?.device == nil)
    #expect(Self.report([line], requesterIDs: [9]).count == 0)
  }

  /// Two SMMUs report at the same time.
  @Test func smmusDoNotMixTheirLines() throws {
    let other = (Self.record + Self.meaning).map {
      $0.replacing("9050000", with: "a050000").replacing("100000", with: "200000")
    }
    let lines = zip(Self.record + Self.meaning, other).flatMap { [$0, $1] }
    let report = Self.report(lines)
    #expect(report.count == 2)
    #expect(report.faults.map(\.iova) == [IOVA(0x10_0000), IOVA(0x20_0000)])
    #expect(report.faults.allSatisfy { $0.reason.hasSuffix("stage 1)") })
  }

  @Test func smmuRecordThatIsCutShortIsNoFault() {
    #expect(Self.report(Array(Self.record.dropLast())).count == 0)
    #expect(Self.report(Array(Self.record.dropLast(2)) + Self.record).count == 1)
    #expect(Self.report(Array(Self.record.dropFirst())).count == 0)
  }

  // MARK: AMD and virtio

  @Test(arguments: [
    "vfio-pci 0000:00:01.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x1000 flags=0x0020]",
    "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:01.0 domain=0x000c address=0x1000 flags=0x0020]",
    "AMD-Vi: Event logged [IO_PAGE_FAULT device=00:01.0 domain=0x000c address=0x0000000000001000 flags=0x0020]",
  ])
  func amd(_ line: String) throws {
    let fault = try fault(line)
    #expect(fault.iova == IOVA(0x1000))
    #expect(fault.access == .write)
    #expect(fault.kind == .translation)
    #expect(fault.requesterID == 8)
    #expect(fault.reason == "IO_PAGE_FAULT")
  }

  @Test(arguments: [
    ("0x0000", Fault.Access.unknown, Fault.Kind.translation), ("0x0010", .read, .permission),
    ("0x0030", .write, .permission), ("0x00b0", .write, .other), ("0x0008", .unknown, .interruptRemapping),
    ("zzz", .unknown, .other),
  ])
  func amdFlags(_ flags: String, _ access: Fault.Access, _ kind: Fault.Kind) throws {
    let fault = try fault(
      "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:01.0 domain=0x0 address=0x1000 flags=\(flags)]")
    #expect((fault.access, fault.kind) == (access, kind))
    #expect((fault.iova == nil) == (kind == .interruptRemapping))
  }

  @Test func amdOtherEvents() throws {
    let fault = try fault(
      "AMD-Vi: Event logged [ILLEGAL_DEV_TABLE_ENTRY device=0000:00:01.0 pasid=0x0 address=0x2000 flags=0x0]")
    #expect((fault.kind, fault.reason) == (.other, "ILLEGAL_DEV_TABLE_ENTRY"))
    #expect(Self.report(["AMD-Vi: Event logged [", "AMD-Vi: Event logged []", "AMD-Vi: enabled"]).count == 0)
    #expect(Self.report(["AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0 address=0x1 flags=0x0]"]).count == 0)
  }

  @Test(arguments: [
    ("virtio_iommu virtio0: page fault from EP 8 at 0x1000 [R]", Fault.Access.read, Fault.Kind.translation),
    ("virtio_iommu virtio0: page fault from EP 8 at 0x1000 [W]", .write, .translation),
    ("virtio_iommu virtio0: page fault from EP 8 at 0x1000 [RW]", .unknown, .translation),
    ("virtio_iommu virtio0: domain fault from EP 8 at 0x1000 []", .unknown, .other),
  ])
  func virtio(_ line: String, _ access: Fault.Access, _ kind: Fault.Kind) throws {
    let fault = try fault(line)
    #expect((fault.access, fault.kind) == (access, kind))
    #expect(fault.iova == IOVA(0x1000))
    #expect(fault.requesterID == 8)
  }

  /// Which stage refused it, where the message says so.
  @Test func stages() throws {
    let meaning = Self.meaning.map { $0.replacing(" s1 ", with: " s2 ") }
    #expect(Self.report(Self.record + Self.meaning).faults.map(\.stage) == [1])
    #expect(Self.report(Self.record + meaning).faults.map(\.stage) == [2])
    let event = Self.record.map { $0.replacing(Self.record[2].suffix(16), with: "0000008000000000") }
    #expect(Self.report(event).faults.map(\.stage) == [2])
    let line = "DMAR: [DMA Read NO_PASID] Request device [00:01.0] fault addr 0x1000 [fault reason 0x"
    #expect(try fault(line + "71] SM: Present bit in first-level paging entry is clear").stage == 1)
    #expect(try fault(line + "79] SM: Read/Write permission error in second-level paging entry").stage == 2)
    #expect(try fault(line + "06] PTE Read access is not set").stage == nil)
  }

  /// The hardware's queue was full, which no number tells of.
  @Test func overflow() {
    let report = Self.report(["arm-smmu-v3 9050000.smmuv3: EVTQ overflow detected -- events lost"])
    #expect(report.hasOverflow && report.count == 0 && report.mayBeIncomplete)
    #expect(Self.report(["some-driver: EVTQ overflow detected -- events lost"]).missing == nil)
  }

  /// Bit 0 of a VT-d's status says so, and no other.
  @Test(arguments: [("1", true), ("3", true), ("f3", true), ("2", false), ("10", false), ("", false)])
  func overflowOfAVTd(_ status: String, _ hasLost: Bool) {
    let report = Self.report(["DMAR: DRHD: handling fault status reg \(status)"])
    #expect(report.hasOverflow == hasLost && report.mayBeIncomplete == hasLost && report.faults.isEmpty)
    #expect(report.missing?.contains("overflowed") == (hasLost ? true : nil))
  }

  @Test func virtioWithoutAnAddress() throws {
    let fault = try fault("virtio_iommu virtio0: unknown fault from EP 8 [W]")
    #expect((fault.iova, fault.access) == (nil, .write))
    #expect(fault.description == "requester 0x8: write to no address: other (unknown fault)")
    #expect(Self.report(["virtio_iommu virtio0: page fault from EP 99999999999 at 0x1 [R]"]).count == 0)
  }
}

extension TestKernel {
  /// Adds lines to the kernel's log, a microsecond apart.
  func log(_ lines: [String]) {
    with { state in
      for line in lines {
        let sequence = (state.log.last?.sequence).map { $0 + 1 } ?? 100
        state.log.append(KernelLogLine(sequence: sequence, time: sequence * 1000, text: line))
      }
    }
  }
}
