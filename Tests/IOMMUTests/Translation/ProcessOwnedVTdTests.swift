import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Tables of the process on a simulated VT-d, which walks them: commands, refusals, groups, several IOMMUs.
@Suite struct ProcessOwnedVTdTests {
  static let first = "0000:00:02.0", second = "0000:00:03.0"

  static func host(
    _ change: (inout SimulatedMachine) -> Void = { _ in }, _ place: (inout [SimulatedDevice]) -> Void = { _ in }
  ) -> SimulatedHost {
    var machine = SimulatedMachine.vtdNested
    change(&machine)
    var devices = [first, second].map { SimulatedDevice($0, EduModel(addressBits: 64)) }
    place(&devices)
    machine.devices = devices
    return SimulatedHost(machine)
  }

  static func open(_ machine: SimulatedHost, _ kernel: (any Kernel)? = nil) throws -> Device {
    try Device(first, on: kernel.map { Host(kernel: $0) } ?? machine.host, translation: .process)
  }

  /// Whether an access of a device to an address goes through.
  static func reaches(_ device: Device, _ address: IOVA, _ machine: SimulatedHost, reads: Bool = false) throws
    -> Bool
  {
    let faults = machine.faults.count
    try EndToEndTests.transfer(try device.registers(bar: 0), address, 8, toDevice: reads)
    return machine.faults.count == faults
  }

  static func buffer(_ device: Device, _ pages: Int = 1) throws -> DMABuffer {
    try device.dma.buffer(byteCount: pages * 4096)
  }

  /// Never without being asked for; then as on any other hardware, in the lower half.
  @Test func onlyWhenAskedFor() throws {
    let machine = Self.host()
    do {
      let automatic = try Device(Self.first, on: machine.host)
      #expect(automatic.translation.owner == .kernel)
      #expect(automatic.translation.reason.contains("not yet run on hardware"))
      let kept = try automatic.dma.map(try Self.buffer(automatic), .bidirectional)
      #expect(try Self.reaches(automatic, kept.address, machine))
      _ = try kept.unmap()
      automatic.close()
      let device = try Self.open(machine)
      #expect(device.translation == TranslationInUse(.process, "Asked for"))
      #expect(device.dma.statistics.systemCalls == 0 && device.dma.statistics.invalidations == 0)
      let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
      #expect(address.rawValue >> 47 == 0)
      #expect(device.dma.usableRanges.allSatisfy { $0.last.rawValue < 1 << 47 })
      #expect(try Self.reaches(device, address, machine))
      _ = try mapping.unmap()
      #expect(try !Self.reaches(device, address, machine))
      #expect(machine.vtdCounters().flagUpdates == 0 && machine.vtdCounters().illegalDescriptors == 0)
      device.close()
    }
    #expect(machine.isClean)
  }

  /// Each requirement, and what is said where it is not met: by sysfs before the device is opened, by the kernel where sysfs does not
  /// say. Nothing of the attempt is left.
  @Test(arguments: [true, false])
  func refusals(_ readsFiles: Bool) throws {
    let cases: [(String, (inout VTdRegisters) -> Void)] = [
      ("ECAP.SMTS", { $0.hasScalableMode = false }), ("ECAP.NEST", { $0.hasNesting = false }),
      ("ECAP.SLTS", { $0.hasSecondStage = false }), ("ECAP.FLTS", { $0.hasFirstStage = false }),
      ("ECAP.SMPWC", { $0.hasCoherentWalks = false }), ("CAP.RWBF", { $0.needsWriteBufferFlush = true }),
    ]
    for (reason, change) in cases {
      let machine = Self.host { change(&$0.vtdRegisters!) }, kernel = FaultingKernel(machine.kernel)
      do throws(DMAError) {
        if !readsFiles { kernel.failFrom(1, of: "readFile", with: .inputOutput) }
        _ = try Device(Self.first, on: Host(kernel: kernel), translation: .process)
        Issue.record("opened without \(reason)")
      } catch {
        #expect(error.code == .notSupported && error.device == Self.first)
        #expect(error.detail?.contains(reason) == true, "\(error)")
      }
      kernel.passAll()
      #expect(machine.isClean)
      do {
        let device = try Device(Self.first, on: machine.host)
        #expect(device.translation.owner == .kernel && device.translation.reason.hasPrefix(reason))
        let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
        #expect(try Self.reaches(device, address, machine))
        _ = try mapping.unmap()
        #expect(try !Self.reaches(device, address, machine))
        device.close()
      }
      #expect(machine.isClean)
    }
  }

  /// A kernel in legacy mode makes no nest parents, whatever the hardware could.
  @Test func legacyMode() throws {
    let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
    kernel.fail(1, of: "hwptAllocate", with: .notSupported)
    do throws(DMAError) {
      _ = try Device(Self.first, on: Host(kernel: kernel), translation: .process)
      Issue.record("opened")
    } catch { #expect(error.detail?.contains("intel_iommu=sm_on") == true) }
    #expect(machine.isClean)
  }

  /// Five levels, leaves of 1 GiB, small masks, caching mode, and one page size below: nobody is kept out.
  @Test func whatDoesAsWell() throws {
    let changes: [(inout SimulatedMachine) -> Void] = [
      { $0.vtdRegisters!.hasFiveLevelFirstStage = true }, { $0.vtdRegisters!.has1GiBFirstStagePages = false },
      { $0.vtdRegisters!.maximumAddressMask = 0 }, { $0.vtdRegisters!.isCachingMode = true },
      { $0.vtdRegisters!.has2MiBSecondStagePages = false }, { $0.vtdRegisters!.hasPageSelectiveInvalidation = false },
      { $0.vtdRegisters!.secondStageLevels = [3] }, { $0.invalidationQueueShift = 2 },
    ]
    for change in changes {
      let machine = Self.host(change)
      do {
        let device = try Self.open(machine)
        let mapping = try device.dma.map(try Self.buffer(device, 3), .bidirectional), address = mapping.address
        #expect(try Self.reaches(device, address + 8192, machine))
        _ = try mapping.unmap()
        #expect(try !Self.reaches(device, address + 8192, machine))
        #expect(machine.vtdCounters().illegalDescriptors == 0)
        device.close()
      }
      #expect(machine.isClean)
    }
  }

  /// One block for what an allocation has to itself, two where one would be too large, and everything beyond a descriptor.
  @Test(arguments: [(1, 1, 0), (3, 1, 0), (512, 1, 0), (513, 2, 0), (600, 2, 0), (1024, 1, 0)])
  func commands(_ pages: Int, _ byPage: Int, _ byPASID: Int) throws {
    let machine = Self.host()
    let device = try Self.open(machine)
    let mapping = try device.dma.map(try Self.buffer(device, pages), .bidirectional)
    let before = machine.vtdCounters(), statistics = device.dma.statistics
    _ = try mapping.unmap()
    let after = machine.vtdCounters(), counted = device.dma.statistics
    #expect(after.process.pageSelective - before.process.pageSelective == byPage)
    #expect(after.process.wholeTag - before.process.wholeTag == byPASID)
    #expect(after.process.syncs - before.process.syncs == byPage + byPASID, "each waits by itself")
    #expect(after.kernel == before.kernel)
    #expect(counted.invalidations - statistics.invalidations == UInt64(byPage + byPASID))
    #expect(counted.syncs - statistics.syncs == counted.invalidations - statistics.invalidations)
    #expect(counted.systemCalls - statistics.systemCalls == 1)
    device.close()
  }

  /// What is larger than a descriptor takes is everything.
  @Test func beyondTheMask() throws {
    let machine = Self.host { $0.vtdRegisters!.maximumAddressMask = 2 }
    let device = try Self.open(machine)
    for (pages, isEverything) in [(4, false), (5, true)] {
      let mapping = try device.dma.map(try Self.buffer(device, pages), .bidirectional), address = mapping.address
      #expect(try Self.reaches(device, address, machine))
      let before = machine.vtdCounters().process.wholeTag
      _ = try mapping.unmap()
      #expect(machine.vtdCounters().process.wholeTag - before == (isEverything ? 1 : 0))
      #expect(try !Self.reaches(device, address, machine))
    }
    device.close()
  }

  /// A lazy flush is one command, for all that was unmapped.
  @Test func lazily() throws {
    let machine = Self.host()
    let device = try Self.open(machine), dma = device.dma
    try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: LazyTests.patient)))
    let before = machine.vtdCounters().process
    for _ in 0..<10 { _ = try dma.map(try Self.buffer(device, 2), .bidirectional).unmap() }
    #expect(machine.vtdCounters().process == before && dma.statistics.gatheredRanges == 0)
    try dma.drain()
    #expect(machine.vtdCounters().process.wholeTag - before.wholeTag == 1)
    #expect(machine.vtdCounters().process.pageSelective == before.pageSelective)
    device.close()
  }

  /// The negative control: hardware that loses an invalidation goes on serving what was there.
  @Test func aLostInvalidationShows() throws {
    let machine = Self.host()
    let device = try Self.open(machine)
    var reached: [Bool] = []
    for round in 0..<3 {
      let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
      #expect(try Self.reaches(device, address, machine))
      if round == 1 { machine.loseInvalidation(1) }
      _ = try mapping.unmap()
      reached.append(try Self.reaches(device, address, machine))
    }
    #expect(reached == [false, true, false])
    device.close()
  }

  /// A table that went and leads to another's memory is not walked by what was cached of the way to it: the hint says that tables went.
  @Test func tablesThatGo() throws {
    let machine = Self.host()
    do {
      let device = try Self.open(machine), dma = device.dma, length = 512 * 4096
      let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 2 * length + (4 << 20), alignment: 2 << 20)
      defer { unsafe memory.deallocate() }
      let registration = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(memory))
      // In mid block, so that its leaves are pages.
      let parts = unsafe [0, length].map { start in
        unsafe UnsafeRawBufferPointer(rebasing: memory[(start + 4096)..<(start + 4096 + length)])
      }
      let first = IOVA(0x1_0000_0000), second = IOVA(0x1_0020_0000)
      let mapping = try unsafe dma.map(unsafe: parts[0], .bidirectional, at: first)
      #expect(try Self.reaches(device, first, machine))
      try mapping.unmap()
      let other = try unsafe dma.map(unsafe: parts[1], .bidirectional, at: second)
      #expect(try !Self.reaches(device, first + 4096, machine))
      #expect(try Self.reaches(device, second + 4096, machine))
      try other.unmap()
      try registration.unregister()
      device.close()
    }
    #expect(machine.isClean)
  }

  /// Stage 1 alone keeps a device from writing: stage 2 has everything to read and write.
  @Test func readOnly() throws {
    let machine = Self.host()
    let device = try Self.open(machine), dma = device.dma
    let mapping = try dma.map(try Self.buffer(device), .toDevice)
    #expect(try Self.reaches(device, mapping.address, machine, reads: true))
    #expect(try !Self.reaches(device, mapping.address, machine))
    #expect(machine.faults.last?.reason == .permission)
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { unsafe page.deallocate() }
    let foreign = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice)
    #expect(try Self.reaches(device, foreign.address, machine, reads: true))
    #expect(try !Self.reaches(device, foreign.address, machine))
    #expect(dma.statistics.implicitRegistrations == 1)
    try foreign.unmap()
    _ = try mapping.unmap()
    // By the kernel's log, with the mapping that was there.
    let faults = dma.faults.faults
    #expect(faults.map(\.kind) == [.permission, .permission] && faults.allSatisfy { $0.device == Self.first })
    device.close()
  }

  /// Memory that this process may not write cannot be registered: it is copied for a device that reads it, and refused else.
  @Test func memoryThatMayNotBeWritten() throws {
    let machine = Self.host()
    do {
      let device = try Self.open(machine), dma = device.dma
      let base = try unsafe machine.kernel.mapMemory(byteCount: 8192, descriptor: -1, offset: 0)
      let memory = unsafe UnsafeRawBufferPointer(start: base, count: 8192)
      unsafe base.storeBytes(of: 0x1122_3344_5566_7788, toByteOffset: 4096, as: UInt64.self)
      #expect(unsafe mprotect(base, 8192, PROT_READ) == 0)
      let mapping = try unsafe dma.map(unsafe: memory, .toDevice)
      #expect(try Self.reaches(device, mapping.address + 4096, machine, reads: true))
      #expect(
        machine.model(at: Self.first, as: EduModel.self)?.buffer.prefix(8) == [
          0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
        ])
      #expect(dma.statistics.implicitRegistrations == 0)
      try mapping.unmap()
      for (direction, place) in [(DMADirection.fromDevice, IOVA?.none), (.toDevice, IOVA(0x1_0000_0000))] {
        do throws(DMAError) {
          _ = try unsafe dma.map(unsafe: memory, direction, at: place).byteCount
          Issue.record("mapped")
        } catch { #expect(error.code == .badMemory && error.errno == .badAddress) }
      }
      #expect(unsafe mprotect(base, 8192, PROT_NONE) == 0)
      do throws(DMAError) {
        _ = try unsafe dma.map(unsafe: memory, .toDevice).byteCount
        Issue.record("mapped")
      } catch { #expect(error.code == .badMemory) }
      unsafe machine.kernel.unmapMemory(base, byteCount: 8192)
      device.close()
    }
    #expect(machine.isClean)
  }

  /// All of a group are attached with the first; no other one has to be bound.
  @Test func aGroup() throws {
    let machine = Self.host({ _ in }) { for index in $0.indices { $0[index].group = 7 } }
    do {
      let first = try Self.open(machine)
      let second = try Device(Self.second, on: machine.host, sharing: first.dma)
      let mapping = try second.dma.map(try Self.buffer(second), .bidirectional)
      #expect(try Self.reaches(first, mapping.address, machine) && Self.reaches(second, mapping.address, machine))
      first.close()
      #expect(try Self.reaches(second, mapping.address, machine))
      _ = try mapping.unmap()
      second.close()
    }
    #expect(machine.isClean)
  }

  /// Faults that come faster than the kernel reads the registers: what was lost is said to be, however many it were.
  @Test func aStormOfFaults() throws {
    let machine = Self.host { $0.vtdRegisters!.faultRegisterCount = 8 }, device = try Self.open(machine)
    #expect(machine.storm(8, from: Self.first, at: 0x1_0000_0000) == 8)
    var report = device.dma.faults
    #expect(report.count == 8 && !report.mayBeIncomplete)
    #expect(machine.storm(200, from: Self.first, at: 0x1_0000_0000) == 200)
    report = device.dma.faults
    #expect(report.count == 16 && report.hasOverflow && report.mayBeIncomplete)
    #expect(machine.vtdCounters().lostFaults == 192)
    device.close()
  }

  /// Devices behind two IOMMUs see one domain, and an unmap tells both; also where the kernel takes no table for another's device.
  @Test func twoUnits() throws {
    let machine = Self.host({ _ in }) { $0[1].iommuUnit = 1 }
    do {
      let first = try Self.open(machine)
      let second = try Device(Self.second, on: machine.host, sharing: first.dma)
      let mapping = try first.dma.map(try Self.buffer(first), .bidirectional), address = mapping.address
      #expect(try Self.reaches(first, address, machine) && Self.reaches(second, address, machine))
      let before = [0, 1].map { machine.vtdCounters(unit: $0).process[.pasidIOTLB] }
      _ = try mapping.unmap()
      #expect([0, 1].map { machine.vtdCounters(unit: $0).process[.pasidIOTLB] } == before.map { $0 + 1 })
      #expect(try !Self.reaches(first, address, machine) && !Self.reaches(second, address, machine))
      second.close()
      let other = try first.dma.map(try Self.buffer(first), .bidirectional)
      _ = try other.unmap()
      #expect(machine.vtdCounters(unit: 1).process[.pasidIOTLB] == before[1] + 1, "none for a unit without a device")
      first.close()
    }
    #expect(machine.isClean)
  }
}
