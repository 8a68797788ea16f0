import IOMMU
import IOMMUSimulation
import Testing

/// The errno contract of vIOMMUs and what hangs on them, and the order of destroying.
@Suite struct VIOMMUTests {
  typealias Row = Rule<SMMURig>

  static func allocate(_ rig: SMMURig, type: UInt32 = 1, device: UInt32? = nil, table: UInt32? = nil) throws -> UInt32 {
    let (device, table) = (device ?? rig.deviceID, table ?? rig.parent)
    return try rig.kernel.viommuAllocate(rig.iommufd, type: type, device: device, pageTable: table)
  }

  static func nest(_ rig: SMMURig, flags: UInt32 = 0, type: UInt32 = 2, device: UInt32? = nil, _ bytes: [UInt8]) throws
  {
    _ = try rig.kernel.hwptAllocate(
      rig.iommufd, flags: flags, device: device ?? rig.deviceID, pageTable: rig.viommu,
      data: HWPTData(type: type, bytes: bytes))
  }

  static let bypass = (1 | 4 << 1 as UInt64).littleEndianBytes + [UInt8](repeating: 0, count: 8)

  static let viommuRules: [Row] = [
    Row("VIOMMU_ALLOC, a second one", nil, "§8.2") { _ = try allocate($0) },
    Row("VIOMMU_ALLOC of no type", .notSupported, "§8.2") { _ = try allocate($0, type: 0) },
    Row("VIOMMU_ALLOC of another type", .notSupported, "§4.7") { _ = try allocate($0, type: 2) },
    Row("VIOMMU_ALLOC of another type, no page table", .notSupported, "§8.2") {
      _ = try allocate($0, type: 2, table: 99)
    },
    Row("VIOMMU_ALLOC for no device", .noEntry, "viommu.c") { _ = try allocate($0, device: 99) },
    Row("VIOMMU_ALLOC over no page table", .noEntry, "§8.2") { _ = try allocate($0, table: 99) },
    Row("VIOMMU_ALLOC over an IOAS", .noEntry, "viommu.c") { _ = try allocate($0, table: $0.ioas) },
    Row("VIOMMU_ALLOC over a nested page table", .noEntry, "viommu.c") { _ = try allocate($0, table: try $0.nest()) },
    Row("VIOMMU_ALLOC over no nest parent", .invalidArgument, "§8.2") {
      _ = try allocate(
        $0, table: try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.ioas))
    },
  ]

  static let deviceRules: [Row] = [
    Row("VDEVICE_ALLOC, a second one", .exists, "§8.2") {
      _ = try $0.kernel.vdeviceAllocate($0.iommufd, viommu: $0.viommu, device: $0.deviceID, number: 1)
    },
    Row("VDEVICE_ALLOC in no vIOMMU", .noEntry, "viommu.c") {
      _ = try $0.kernel.vdeviceAllocate($0.iommufd, viommu: $0.parent, device: $0.deviceID, number: 1)
    },
    Row("VDEVICE_ALLOC of no device", .noEntry, "viommu.c") {
      _ = try $0.kernel.vdeviceAllocate($0.iommufd, viommu: $0.viommu, device: 99, number: 1)
    },
    Row("VDEVICE_ALLOC again, after it was destroyed", nil, "§8.2") {
      try $0.kernel.iommufdDestroy($0.iommufd, id: $0.vdevice)
      _ = try $0.kernel.vdeviceAllocate($0.iommufd, viommu: $0.viommu, device: $0.deviceID, number: 1)
    },
    Row("VEVENTQ_ALLOC, a second one", .exists, "§8.2") {
      _ = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: $0.viommu, type: 1, depth: 1)
    },
    Row("VEVENTQ_ALLOC of no depth", .invalidArgument, "§8.2") {
      _ = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: $0.viommu, type: 1, depth: 0)
    },
    Row("VEVENTQ_ALLOC too deep", .invalidArgument, "§8.2") {
      _ = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: try allocate($0), type: 1, depth: 1 << 19 + 1)
    },
    Row("VEVENTQ_ALLOC as deep as can be", nil, "§8.2") {
      let (_, events) = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: try allocate($0), type: 1, depth: 1 << 19)
      $0.kernel.close(events)
    },
    Row("VEVENTQ_ALLOC of no type", .notSupported, "eventq.c") {
      _ = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: $0.viommu, type: 0, depth: 1)
    },
    Row("VEVENTQ_ALLOC of another type", .notSupported, "eventq.c") {
      _ = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: try allocate($0), type: 2, depth: 1)
    },
    Row("VEVENTQ_ALLOC in no vIOMMU", .noEntry, "eventq.c") {
      _ = try $0.kernel.eventQueueAllocate($0.iommufd, viommu: 99, type: 1, depth: 1)
    },
    Row("read of no event queue", .badDescriptor, "read(2)") {
      _ = try unsafe $0.kernel.readEventQueue($0.iommufd, UnsafeMutableRawBufferPointer(start: nil, count: 0))
    },
  ]

  static let tableRules: [Row] = [
    Row("HWPT_ALLOC of an entry", nil, "§4.7") { try nest($0, bypass) },
    Row("HWPT_ALLOC without data", .notSupported, "viommu.c") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.viommu)
    },
    Row("HWPT_ALLOC of a short entry", .invalidArgument, "§4.7") { try nest($0, [UInt8](repeating: 0, count: 15)) },
    Row("HWPT_ALLOC of a longer entry, of zeros", nil, "§8.1") { try nest($0, bypass + [0]) },
    Row("HWPT_ALLOC of a longer entry", .tooBig, "§8.1") { try nest($0, bypass + [1]) },
    Row("HWPT_ALLOC of another format", .invalidArgument, "§8.1") { try nest($0, type: 1, bypass) },
    Row("HWPT_ALLOC with a flag", .notSupported, "§4.7") { try nest($0, flags: 1, bypass) },
    Row("HWPT_ALLOC for no device", .noEntry, "§8.2") { try nest($0, device: 99, bypass) },
    Row("HWPT_ALLOC over the nest parent", .notSupported, "§4.7") {
      _ = try $0.kernel.hwptAllocate(
        $0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.parent, data: HWPTData(type: 2, bytes: bypass))
    },
    Row("HWPT_ALLOC over a vDEVICE", .invalidArgument, "§8.2") {
      _ = try $0.kernel.hwptAllocate(
        $0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.vdevice, data: HWPTData(type: 2, bytes: bypass))
    },
    Row("ATTACH to a vIOMMU", .invalidArgument, "device.c") { try $0.attach($0.viommu) },
    Row("ATTACH without a vDEVICE", .noEntry, "§4.7") {
      try $0.kernel.iommufdDestroy($0.iommufd, id: $0.vdevice)
      try $0.attach(try $0.nest())
    },
    Row("ATTACH without a vDEVICE, stage 2 alone", nil, "§4.7") {
      try $0.kernel.iommufdDestroy($0.iommufd, id: $0.vdevice)
      try nest($0, bypass)
      try $0.attach(try $0.nest(1 | 4 << 1, 0))
    },
  ]

  static func send(_ rig: SMMURig, to id: UInt32, type: UInt32 = 1, byteCount: Int = 16, _ bytes: [UInt8]) throws {
    let result: Result<Int, Errno> = unsafe bytes.withUnsafeBytes { entries in
      do throws(Errno) {
        return .success(
          try unsafe rig.kernel.hwptInvalidate(
            rig.iommufd, pageTable: id, type: type, entries: entries, byteCount: byteCount))
      } catch { return .failure(error) }
    }
    _ = try result.get()
  }

  static let all = (0x30 as UInt64).littleEndianBytes + [UInt8](repeating: 0, count: 8)

  static let commandRules: [Row] = [
    Row("HWPT_INVALIDATE", nil, "§4.7") { try send($0, to: $0.viommu, all) },
    Row("HWPT_INVALIDATE of nothing", .invalidArgument, "§8.2") { try send($0, to: $0.viommu, []) },
    Row("HWPT_INVALIDATE of another type", .invalidArgument, "§8.2") { try send($0, to: $0.viommu, type: 0, all) },
    Row("HWPT_INVALIDATE of no length", .invalidArgument, "§8.2") { try send($0, to: $0.viommu, byteCount: 0, all) },
    Row("HWPT_INVALIDATE of long zeros", nil, "§8.1") {
      try send($0, to: $0.viommu, byteCount: 24, all + [UInt8](repeating: 0, count: 8))
    },
    Row("HWPT_INVALIDATE of long entries", .tooBig, "§8.1") {
      try send($0, to: $0.viommu, byteCount: 24, all + [UInt8](repeating: 1, count: 8))
    },
    Row("HWPT_INVALIDATE of entries over a page", .invalidArgument, "§8.2") {
      try send($0, to: $0.viommu, byteCount: 4097, all + [UInt8](repeating: 0, count: 4081))
    },
    Row("HWPT_INVALIDATE of no object", .noEntry, "§8.2") { try send($0, to: 99, all) },
    Row("HWPT_INVALIDATE of a nested page table", .notSupported, "§8.2") { try send($0, to: try $0.nest(), all) },
    Row("HWPT_INVALIDATE of the nest parent", .invalidArgument, "§8.2") { try send($0, to: $0.parent, all) },
  ]

  @Test(arguments: viommuRules + deviceRules + tableRules + commandRules)
  func rule(_ row: Row) throws {
    let rig = try SMMURig()
    row.check(rig)
    rig.close()
  }

  /// Opcodes that are not for a process, and stream ids that it does not have: EIO.
  @Test func commandsAreConverted() throws {
    let rig = try SMMURig()
    let fine: Set<UInt64> = [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40]
    for opcode in 0..<256 as Range<UInt64> {
      let word = opcode | SMMURig.stream << 32
      if fine.contains(opcode) {
        #expect(try rig.invalidate(word, 1) == 1)
      } else {
        #expect(throws: Errno.inputOutput, "\(opcode)") { try rig.invalidate(word, 1) }
      }
    }
    for opcode in [0x05, 0x06, 0x40] as [UInt64] {
      #expect(throws: Errno.inputOutput) { try rig.invalidate(opcode | 0x300 << 32, 1) }
    }
    // Without its vDEVICE a device has no number, attached or not.
    try rig.attach(try rig.nest())
    try rig.kernel.iommufdDestroy(rig.iommufd, id: rig.vdevice)
    #expect(throws: Errno.inputOutput) { try rig.invalidate(0x05 | SMMURig.stream << 32, 1) }
    #expect(try rig.invalidate(0x10) == 1)
    rig.close()
  }

  /// Each object is busy while something stands on it; the vDEVICE never is.
  @Test func destroyOrder() throws {
    let rig = try SMMURig(), kernel = rig.kernel
    func isBusy(_ id: UInt32) -> Bool {
      do throws(Errno) {
        try kernel.iommufdDestroy(rig.iommufd, id: id)
        return false
      } catch { return error == .busy }
    }
    let nested = try rig.nest()
    Stage1(rig).map(0x1000, page: 1)
    try rig.attach(nested)
    #expect(isBusy(nested) && isBusy(rig.viommu) && isBusy(rig.parent) && isBusy(rig.ioas) && isBusy(rig.eventQueue))
    #expect(!isBusy(rig.vdevice))
    // Attached as before; its faults are told as before.
    #expect(try rig.page(at: 0x1000) == 1)
    #expect(try !rig.access(0x2000))
    #expect(try rig.readEvents().map { $0.words[0] } == [SMMURig.stream << 32 | 0x10])
    try kernel.vfioDetach(rig.device)
    #expect(isBusy(rig.viommu))
    #expect(!isBusy(nested))
    #expect(isBusy(rig.viommu), "the event queue")
    kernel.close(rig.events)
    #expect(isBusy(rig.viommu))
    #expect(!isBusy(rig.eventQueue))
    #expect(isBusy(rig.parent))
    #expect(!isBusy(rig.viommu))
    #expect(isBusy(rig.ioas))
    #expect(!isBusy(rig.parent) && !isBusy(rig.ioas))
    rig.close()
  }

  /// A vDEVICE keeps its vIOMMU, and goes with its device.
  @Test func vdevicesGoWithTheirDevices() throws {
    let rig = try SMMURig(), kernel = rig.kernel
    kernel.close(rig.events)
    try kernel.iommufdDestroy(rig.iommufd, id: rig.eventQueue)
    #expect(throws: Errno.busy) { try kernel.iommufdDestroy(rig.iommufd, id: rig.viommu) }
    kernel.close(rig.device)
    #expect(throws: Errno.noEntry) { try kernel.iommufdDestroy(rig.iommufd, id: rig.vdevice) }
    try kernel.iommufdDestroy(rig.iommufd, id: rig.viommu)
    rig.close()
  }

  /// An open event queue keeps the objects of an iommufd whose descriptor is closed.
  @Test func eventQueuesOutliveTheDescriptor() throws {
    let rig = try SMMURig()
    try rig.attach(try rig.nest())
    #expect(try !rig.access(0x1000))
    rig.kernel.close(rig.device)
    rig.kernel.close(rig.iommufd)
    #expect(rig.machine.kernel.census.nestingObjects == 2, "the device's number is gone")
    #expect(try rig.readEvents().count == 1)
    rig.close()
  }

  /// What the machine has to have: both stages, and one of two ways to be coherent. It is said before the page table is looked at.
  @Test func requirements() throws {
    func answer(_ change: (inout SimulatedMachine) -> Void) throws -> [Errno?] {
      var machine = SimulatedMachine.smmuv3Nested
      change(&machine)
      let host = SimulatedHost(machine, devices: [SMMURig.address: EduModel()]), kernel = host.kernel
      let iommufd = try kernel.open("/dev/iommu"), device = try kernel.open("/dev/vfio/devices/vfio0")
      let id = try kernel.vfioBind(device, iommufd: iommufd, token: nil), ioas = try kernel.ioasAllocate(iommufd)
      defer { for descriptor in [device, iommufd] { kernel.close(descriptor) } }
      var answers: [Errno?] = []
      do throws(Errno) {
        _ = try kernel.hwptAllocate(iommufd, flags: 1, device: id, pageTable: ioas)
        answers.append(nil)
      } catch { answers.append(error) }
      do throws(Errno) { _ = try kernel.viommuAllocate(iommufd, type: 1, device: id, pageTable: 99) } catch {
        answers.append(error)
      }
      return answers
    }
    #expect(try answer { _ in } == [nil, .noEntry])
    #expect(try answer { $0.hasCANWBS = false } == [nil, .notSupported])
    #expect(try answer { ($0.hasCANWBS, $0.smmu.hasStage2ForcedWriteBack) = (false, true) } == [nil, .noEntry])
    #expect(try answer { $0.smmu.hasStage1 = false } == [.notSupported, .notSupported])
    #expect(try answer { $0.smmu.hasStage2 = false } == [.notSupported, .notSupported])
    #expect(try answer { $0 = .smmuv3 } == [nil, .notSupported], "QEMU as it is")
    #expect(try answer { $0 = .vtd } == [nil, .notSupported])
    #expect(!SimulatedHost(.smmuv3Nested).kernel.hasFlatFormat && SimulatedHost(.smmuv3).kernel.hasFlatFormat)
  }
}
