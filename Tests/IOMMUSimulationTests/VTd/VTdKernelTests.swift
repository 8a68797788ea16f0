import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// iommufd's rules for nesting on VT-d, and what the kernel's driver sends by itself.
@Suite struct VTdKernelTests {
  typealias Row = Rule<VTdRig>

  static func invalidate(
    _ rig: VTdRig, _ entries: (UInt64, UInt64, UInt64)..., type: UInt32 = 0, byteCount: Int = 24,
    of table: UInt32? = nil
  ) throws {
    let done = try rig.invalidate(try table ?? rig.nest(), entries, type: type, byteCount: byteCount)
    #expect(done == entries.count)
  }

  static let tableRules: [Row] = [
    Row("HWPT_ALLOC of a first stage", nil, "§5.6") { _ = try $0.nest() },
    Row("HWPT_ALLOC for PASIDs", nil, "§5.6") { _ = try $0.nest(VTdRig.stage1(), flags: 8) },
    Row("HWPT_ALLOC with dirty tracking", .notSupported, "§8.2") { _ = try $0.nest(VTdRig.stage1(), flags: 2) },
    Row("HWPT_ALLOC of a nest parent over a parent", .notSupported, "§8.2") {
      _ = try $0.nest(VTdRig.stage1(), flags: 1)
    },
    Row("HWPT_ALLOC without data", .notSupported, "§8.2") {
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.parent)
    },
    Row("HWPT_ALLOC of a type without data", .invalidArgument, "§8.2") { _ = try $0.nest([]) },
    Row("HWPT_ALLOC of data without a type", .invalidArgument, "§8.2") { _ = try $0.nest(VTdRig.stage1(), type: 0) },
    Row("HWPT_ALLOC of another format", .notSupported, "§5.6") { _ = try $0.nest(VTdRig.stage1(), type: 2) },
    Row("HWPT_ALLOC of a short structure", .invalidArgument, "§8.1") { _ = try $0.nest(VTdRig.stage1().dropLast()) },
    Row("HWPT_ALLOC of a longer one, of zeros", nil, "§8.1") { _ = try $0.nest(VTdRig.stage1() + [0]) },
    Row("HWPT_ALLOC of a longer one", .tooBig, "§8.1") { _ = try $0.nest(VTdRig.stage1() + [1]) },
    Row("HWPT_ALLOC over no page table", .invalidArgument, "§8.2") { _ = try $0.nest(VTdRig.stage1(), over: 99) },
    Row("HWPT_ALLOC over what is no nest parent", .invalidArgument, "§5.6") {
      let plain = try $0.kernel.hwptAllocate($0.iommufd, flags: 0, device: $0.deviceID, pageTable: $0.ioas)
      _ = try $0.nest(VTdRig.stage1(), over: plain)
    },
    Row("HWPT_ALLOC over a nested table", .invalidArgument, "§8.2") {
      _ = try $0.nest(VTdRig.stage1(), over: try $0.nest())
    },
    Row("HWPT_ALLOC looks at nothing in it", nil, "§5.6") {
      _ = try $0.nest(VTdRig.stage1(flags: .max, table: .max, addressBits: 1))
    },
    Row("VIOMMU_ALLOC", .notSupported, "§5.6") {
      _ = try $0.kernel.viommuAllocate($0.iommufd, type: 1, device: $0.deviceID, pageTable: $0.parent)
    },
    Row("ATTACH with an odd width", .invalidArgument, "§5.6") {
      try $0.attach(try $0.nest(VTdRig.stage1(addressBits: 52)))
    },
    Row("ATTACH with five levels that there are not", .invalidArgument, "§5.6") {
      try $0.attach(try $0.nest(VTdRig.stage1(addressBits: 57)))
    },
    Row("ATTACH with EAFE", .invalidArgument, "§5.6") { try $0.attach(try $0.nest(VTdRig.stage1(flags: 2))) },
    Row("ATTACH with SRE and WPE", nil, "§5.6") { try $0.attach(try $0.nest(VTdRig.stage1(flags: 5))) },
    Row("ATTACH with flags that nobody knows", nil, "§5.6") {
      try $0.attach(try $0.nest(VTdRig.stage1(flags: 1 << 40)))
    },
    Row("IOAS_MAP, read only, under a nest parent", .invalidArgument, "§5.5") { try $0.map(0x9000_0000, flags: 5) },
    Row("IOAS_MAP, write only, under a nest parent", nil, "§5.5") { try $0.map(0x9000_0000, flags: 3) },
    Row("HWPT_ALLOC of a nest parent over what may only be read", .invalidArgument, "§5.5") {
      let ioas = try $0.kernel.ioasAllocate($0.iommufd)
      _ = try $0.kernel.ioasMap(
        $0.iommufd, ioas: ioas, flags: 5, address: $0.memory.address, byteCount: 4096, iova: 0x9000_0000)
      _ = try $0.kernel.hwptAllocate($0.iommufd, flags: 1, device: $0.deviceID, pageTable: ioas)
    },
  ]

  static let commandRules: [Row] = [
    Row("HWPT_INVALIDATE", nil, "§5.6") { try invalidate($0, (0x1000, 1, 1)) },
    Row("HWPT_INVALIDATE of nothing", nil, "§8.2") { try invalidate($0) },
    Row("HWPT_INVALIDATE of everything", nil, "§5.6") { try invalidate($0, (0, .max, 0)) },
    Row("HWPT_INVALIDATE of everything from an address on", .invalidArgument, "§5.6") {
      try invalidate($0, (0x1000, .max, 0))
    },
    Row("HWPT_INVALIDATE in mid page", .invalidArgument, "§5.6") { try invalidate($0, (0x1001, 1, 0)) },
    Row("HWPT_INVALIDATE with a flag", .notSupported, "§5.6") { try invalidate($0, (0x1000, 1, 2)) },
    Row("HWPT_INVALIDATE with a reserved word", .notSupported, "§5.6") { try invalidate($0, (0x1000, 1, 1 << 32)) },
    Row("HWPT_INVALIDATE of another type", .invalidArgument, "§5.6") { try invalidate($0, (0, 1, 0), type: 1) },
    Row("HWPT_INVALIDATE by short entries", .invalidArgument, "§8.1") { try invalidate($0, (0, 1, 0), byteCount: 20) },
    Row("HWPT_INVALIDATE by longer entries, of zeros", nil, "§8.1") { try invalidate($0, (0, 1, 0), byteCount: 32) },
    Row("HWPT_INVALIDATE by entries beyond a page", .invalidArgument, "§8.2") {
      try invalidate($0, (0, 1, 0), byteCount: 4104)
    },
    Row("HWPT_INVALIDATE of the parent", .invalidArgument, "§8.2") { try invalidate($0, (0, 1, 0), of: $0.parent) },
    Row("HWPT_INVALIDATE of the IOAS", .invalidArgument, "§8.2") { try invalidate($0, (0, 1, 0), of: $0.ioas) },
    Row("HWPT_INVALIDATE of nothing there", .noEntry, "§8.2") { try invalidate($0, (0, 1, 0), of: 99) },
  ]

  @Test(arguments: tableRules + commandRules)
  func rule(_ row: Row) throws {
    let rig = try VTdRig()
    row.check(rig)
    rig.close()
  }

  /// Entries before the one that makes no sense are done, each by itself.
  @Test func partialFailure() throws {
    let stale = try VTdQueueTests.Stale(), base = VTdQueueTests.base
    #expect(throws: Errno.invalidArgument) {
      try stale.rig.invalidate(stale.nested, [(base, 1, 1), (base + 0x1000, 1, 1), (1, 1, 1), (base + 0x2000, 1, 1)])
    }
    #expect(stale.rig.machine.kernel.invalidationProgress == InvalidationProgress(handled: 2, issued: 2))
    #expect(try stale.served() == "234567b")
    stale.rig.close()
  }

  /// Each object is busy while something stands on it.
  @Test func destroyOrder() throws {
    let rig = try VTdRig(), kernel = rig.kernel, nested = try rig.nest()
    func isBusy(_ id: UInt32) -> Bool {
      do throws(Errno) {
        try kernel.iommufdDestroy(rig.iommufd, id: id)
        return false
      } catch { return error == .busy }
    }
    try rig.attach(nested)
    #expect(isBusy(nested) && isBusy(rig.parent) && isBusy(rig.ioas))
    try kernel.vfioDetach(rig.device)
    #expect(isBusy(rig.parent) && !isBusy(nested))
    #expect(isBusy(rig.ioas) && !isBusy(rig.parent) && !isBusy(rig.ioas))
    rig.close()
  }

  /// An entry that is written costs nothing; one that is torn down a PASID-cache and a domain-selective descriptor, each with a
  /// wait, and unmapping everything after that nothing more.
  @Test func attachAndDetach() throws {
    let stale = try VTdQueueTests.Stale(), rig = stale.rig
    #expect(rig.counters.kernel == VTdCounters.Descriptors())
    try rig.kernel.vfioDetach(rig.device)
    let kernel = rig.counters.kernel
    #expect(kernel[.pasidCache] == 1 && kernel[.iotlb] == 1 && kernel.wholeTag == 1 && kernel.syncs == 2)
    #expect(rig.machine.counters.invalidations == 1 && rig.machine.counters.configurationInvalidations == 1)
    #expect(try !rig.access(VTdQueueTests.base))
    #expect(rig.machine.faults.last?.reason == .blocked)
    try rig.unmap(0, byteCount: .max)
    #expect(rig.counters.kernel == kernel)
    try rig.map(VTdRig.ipa, byteCount: VTdRig.byteCount)
    try rig.attach(stale.nested)
    #expect(try stale.served() == "", "the tag was clean")
    rig.close()
  }

  /// Each area that leaves stage 2 while attached is one page-selective descriptor with its wait, for leaves alone unless tables
  /// went; and what was made of both stages goes as a whole.
  @Test func unmappingStage2() throws {
    let stale = try VTdQueueTests.Stale(), rig = stale.rig
    for offset in stride(from: 0, to: 0x4000 as UInt64, by: 0x1000) {
      try rig.map(0x10_0000 + offset, offset: UInt64(VTdRig.data) + offset)
    }
    stale.first.map(0x2000, to: 0x10_0000)
    #expect(try rig.page(at: 0x2000) == 0)
    var before = rig.counters.kernel
    try rig.unmap(0x10_0000, byteCount: 0x4000)
    #expect(rig.counters.kernel[.iotlb] - before[.iotlb] == 4 && rig.counters.kernel.syncs - before.syncs == 4)
    #expect(rig.counters.kernel.pageSelective - before.pageSelective == 4)
    #expect(try !rig.access(0x2000) && stale.served() == "")
    // More than a descriptor takes is everything of the domain.
    for (pages, isSelective) in [(512, true), (1024, false)] as [(UInt64, Bool)] {
      var machine = SimulatedMachine.vtdNested
      machine.vtdRegisters!.maximumAddressMask = 9
      let other = try VTdRig(machine)
      try other.map(0x4000_0000, byteCount: pages << 12)
      try other.attach(try other.nest())
      before = other.counters.kernel
      try other.unmap(0x4000_0000, byteCount: pages << 12)
      #expect(other.counters.kernel.pageSelective - before.pageSelective == (isSelective ? 1 : 0))
      #expect(other.counters.kernel.wholeTag - before.wholeTag == (isSelective ? 0 : 1))
      #expect(other.counters.illegalDescriptors == 0)
      other.close()
    }
    rig.close()
  }

  /// A descriptor of the kernel's that is lost leaves the second stage stale, in what is walked anew too.
  @Test func stage2IsCachedToo() throws {
    let stale = try VTdQueueTests.Stale(), rig = stale.rig
    try rig.map(0x10_0000, offset: UInt64(VTdRig.data))
    stale.first.map(0x2000, to: 0x10_0000)
    #expect(try rig.page(at: 0x2000) == 0)
    rig.machine.loseInvalidation(1, from: .kernel)
    try rig.unmap(0x10_0000)
    try rig.invalidate(stale.nested, [(0, .max, 0)])
    #expect(try rig.page(at: 0x2000) == 0)
    rig.close()
  }

  /// A table of the second stage that goes and comes back as another is found, since its going was told without the hint.
  @Test func tablesOfStage2() throws {
    let stale = try VTdQueueTests.Stale(), rig = stale.rig
    for page in [3, 4] {
      try rig.map(0x4000_0000, offset: UInt64(VTdRig.data + page * 4096), byteCount: 0x20_0000 - 0x10_0000)
      try rig.map(0x4010_0000, offset: UInt64(VTdRig.data), byteCount: 0x10_0000)
      stale.first.map(0x2000, to: 0x4000_0000)
      try rig.invalidate(stale.nested, [(0x2000, 1, 1)])
      #expect(try rig.page(at: 0x2000) == page)
      try rig.unmap(0x4000_0000, byteCount: 0x20_0000)
      #expect(try rig.page(at: 0x2000) == nil)
    }
    rig.close()
  }

  /// Domains of the kernel's own: first-stage tables where there are such, else second-stage ones, and those alone without scalable
  /// mode; invalidated by their own kind of address, and told with the reasons of their kind.
  @Test(arguments: [(true, true, "0x71", "0x85"), (true, false, "0x79", "0x79"), (false, true, "0x05", "0x05")])
  func kernelOwned(_ isScalable: Bool, _ hasFirst: Bool, _ absent: String, _ readOnly: String) throws {
    var machine = SimulatedMachine.vtdNested
    machine.vtdRegisters!.hasScalableMode = isScalable
    machine.vtdRegisters!.hasFirstStage = hasFirst
    let rig = try IOMMUFDRig(machine), isFirst = isScalable && hasFirst
    func reason() throws -> String? {
      try rig.kernel.kernelLog(from: 0).last?.text.split(separator: "]").first { $0.contains("reason") }.map {
        String($0.suffix(4))
      }
    }
    try rig.map(at: 0x1000, byteCount: 0x3000)
    #expect(try rig.edu(0x1ff8, 16, toMemory: true) && rig.edu(0x3000, 8, toMemory: false))
    #expect(try !rig.edu(0x4000, 8, toMemory: true) && reason() == absent)
    try rig.map(at: 0x8000, flags: 5)
    #expect(try rig.edu(0x8000, 8, toMemory: false) && !rig.edu(0x8000, 8, toMemory: true) && reason() == readOnly)
    let before = rig.machine.vtdCounters().kernel
    try rig.unmap(0x1000, 0x3000)
    let after = rig.machine.vtdCounters().kernel
    #expect(after[isFirst ? .pasidIOTLB : .iotlb] == 1 && before.tlbInvalidations == 0 && after.syncs == 1)
    #expect(try !rig.edu(0x1ff8, 8, toMemory: true))
    let last = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas).ranges.last!.last.rawValue
    #expect(last == (isFirst ? 1 << 47 - 1 : 1 << 48 - 1))
    rig.close()
  }

  /// Caching mode has pages flushed when they come, one by one, but for first stages.
  @Test func cachingMode() throws {
    var machine = SimulatedMachine.vtdNested
    machine.cachingMode = true
    let rig = try VTdRig(machine)
    try rig.attach(try rig.nest())
    try rig.map(0x9000_0000, byteCount: 0x3000)
    #expect(rig.counters.kernel.pageSelective == 3 && rig.machine.counters.flushesOnMap == 3)
    #expect(rig.machine.counters.invalidations == 0)
    rig.close()
    let plain = try IOMMUFDRig(machine)
    try plain.map(at: 0x1000)
    #expect(plain.machine.vtdCounters().kernel == VTdCounters.Descriptors())
    plain.close()
  }

  /// One nested table for devices behind two units: an entry goes to both.
  @Test func twoUnits() throws {
    var machine = SimulatedMachine.vtdNested
    var second = SimulatedDevice("0000:04:00.0", EduModel(addressBits: 64))
    second.iommuUnit = 1
    machine.devices = [SimulatedDevice(VTdRig.address, EduModel(addressBits: 64)), second]
    let rig = try VTdRig(on: SimulatedHost(machine)), first = FirstStage(rig), nested = try rig.nest()
    first.map(0x1000, page: 1)
    try rig.attach(nested)
    let device = try rig.kernel.open("/dev/vfio/devices/vfio1")
    _ = try rig.kernel.vfioBind(device, iommufd: rig.iommufd, token: nil)
    _ = try rig.kernel.vfioAttach(device, pageTable: nested)
    try Registers(kernel: rig.kernel, device: device).enable()
    #expect(rig.machine.kernel.translate([0x1000], rounds: 1, for: PCIAddress("0000:04:00.0")!) == 1)
    first.clear(0x1000)
    #expect(rig.machine.kernel.translate([0x1000], rounds: 1, for: PCIAddress("0000:04:00.0")!) == 1, "stale")
    try rig.invalidate(nested, [(0x1000, 1, 1)])
    #expect(rig.machine.vtdCounters(unit: 1).process[.pasidIOTLB] == 1 && rig.counters.process[.pasidIOTLB] == 1)
    #expect(rig.machine.kernel.translate([0x1000], rounds: 1, for: PCIAddress("0000:04:00.0")!) == 0)
    rig.kernel.close(device)
    rig.close()
  }

  /// What the hardware has to have: scalable mode, nesting, second-stage tables.
  @Test func requirements() throws {
    func answer(_ change: (inout VTdRegisters) -> Void) throws -> Errno? {
      var machine = SimulatedMachine.vtdNested
      change(&machine.vtdRegisters!)
      let rig = try IOMMUFDRig(machine)
      defer { rig.close() }
      do throws(Errno) {
        _ = try rig.kernel.hwptAllocate(rig.iommufd, flags: 1, device: rig.deviceID, pageTable: rig.ioas)
        return nil
      } catch { return error }
    }
    #expect(try answer { _ in } == nil)
    #expect(try answer { $0.hasScalableMode = false } == .notSupported)
    #expect(try answer { $0.hasNesting = false } == .notSupported)
    #expect(try answer { $0.hasSecondStage = false } == .notSupported)
    #expect(!SimulatedHost(.vtdNested).kernel.hasFlatFormat && SimulatedHost(.vtdNested).kernel.nests)
  }
}
