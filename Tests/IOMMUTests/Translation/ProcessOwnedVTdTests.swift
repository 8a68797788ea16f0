import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Tables of the process on a simulated VT-d, which walks them: commands, refusals, groups, several IOMMUs, failures.
@Suite struct ProcessOwnedVTdTests {
  private static let first = "0000:00:02.0", second = "0000:00:03.0"

  private static func host(
    _ change: (inout SimulatedMachine) -> Void = { _ in }, _ place: (inout [SimulatedDevice]) -> Void = { _ in }
  ) -> SimulatedHost {
    var machine = SimulatedMachine.vtdNested
    change(&machine)
    var devices = [first, second].map { SimulatedDevice($0, EduModel(addressBits: 64)) }
    place(&devices)
    machine.devices = devices
    return SimulatedHost(machine)
  }

  private static func open(_ machine: SimulatedHost, _ kernel: (any Kernel)? = nil) throws -> Device {
    try Device(first, on: kernel.map { Host(kernel: $0) } ?? machine.host, translation: .process)
  }

  /// Whether an access of a device to an address goes through.
  private static func reaches(_ device: Device, _ address: IOVA, _ machine: SimulatedHost, reads: Bool = false) throws
    -> Bool
  {
    let faults = machine.faults.count
    try EndToEndTests.transfer(try device.registers(bar: 0), address, 8, toDevice: reads)
    return machine.faults.count == faults
  }

  private static func buffer(_ device: Device, _ pages: Int = 1) throws -> DMABuffer {
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

  /// A table that went and came back in another's place is found: the hint says that tables went.
  @Test func tablesThatGo() throws {
    let machine = Self.host()
    let device = try Self.open(machine)
    for _ in 0..<4 {
      let mapping = try device.dma.map(try Self.buffer(device, 1024), .bidirectional), address = mapping.address
      #expect(try Self.reaches(device, address + 4096 * 1023, machine))
      _ = try mapping.unmap()
      #expect(try !Self.reaches(device, address + 4096 * 1023, machine))
    }
    device.close()
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

  /// A call that fails leaves it open what was done: everything is invalidated then.
  @Test func aFailedCall() throws {
    let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
    let device = try Self.open(machine, kernel)
    let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
    #expect(try Self.reaches(device, address, machine))
    let before = machine.vtdCounters().process.wholeTag
    kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    _ = try mapping.unmap()
    #expect(try !Self.reaches(device, address, machine))
    #expect(machine.vtdCounters().process.wholeTag == before + 1 && device.dma.statistics.leakedBytes == 0)
    let stuck = try device.dma.map(try Self.buffer(device), .bidirectional)
    kernel.failFrom(1, of: "hwptInvalidate", with: .inputOutput)
    do throws(DMAError) {
      _ = try stuck.unmap()
      Issue.record("unmapped")
    } catch { #expect(error.errno == .inputOutput) }
    #expect(device.dma.statistics.leakedBytes == 4096)
    kernel.passAll()
    device.close()
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }

  /// The n-th call of opening fails, for every n: an error, and nothing is left. Then of closing: nothing stays pinned.
  @Test func everyCall() throws {
    for n in 1...200 {
      let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
      kernel.fail(n, with: .inputOutput)
      var hasFailed = true
      do {
        if let device = try? Self.open(machine, kernel) {
          hasFailed = kernel.hasFailed
          device.close()
        }
      }
      #expect(machine.isClean, "call \(n), \(kernel.failedName ?? "none")")
      if !hasFailed { return }
    }
    Issue.record("opening takes more calls than that")
  }

  @Test func everyCallOfClosing() throws {
    for n in 1...50 {
      let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
      do {
        let device = try Self.open(machine, kernel)
        _ = try device.dma.map(try Self.buffer(device), .bidirectional).unmap()
        kernel.resetCounts()
        kernel.fail(n, with: .inputOutput)
        device.close()
      }
      let hasFailed = kernel.hasFailed
      kernel.passAll()
      // What could not be destroyed goes with the descriptors.
      #expect(
        machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0, "\(kernel.failedName ?? "")")
      if !hasFailed { return }
    }
    Issue.record("closing takes more calls than that")
  }

  /// A device that cannot join is told why; the others go on.
  @Test func joiningFails() throws {
    let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
    do {
      let first = try Self.open(machine, kernel)
      for call in ["vfioAttach", "hardwareInfo"] {
        kernel.resetCounts()
        kernel.fail(1, of: call, with: .busy)
        do throws(DMAError) {
          _ = try Device(Self.second, on: Host(kernel: kernel), sharing: first.dma)
          Issue.record("joined")
        } catch { #expect(error.errno == .busy && error.device == Self.second) }
      }
      // A table that the kernel will not have the device in is not the last word.
      kernel.resetCounts()
      kernel.fail(1, of: "vfioAttach", with: .invalidArgument)
      let second = try Device(Self.second, on: Host(kernel: kernel), sharing: first.dma)
      let mapping = try first.dma.map(try Self.buffer(first), .bidirectional), address = mapping.address
      #expect(try Self.reaches(first, address, machine) && Self.reaches(second, address, machine))
      _ = try mapping.unmap()
      #expect(try !Self.reaches(first, address, machine) && !Self.reaches(second, address, machine))
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// Threads that map, unmap, flush and register at once, while another device comes and goes.
  @Test func allAtOnce() throws {
    let machine = Self.host({ _ in }) { $0[1].iommuUnit = 1 }
    do {
      let first = try Self.open(machine), dma = first.dma
      let next = Atomic<Int>(0), failures = Mutex<[String]>([])
      WorkerThreads.run(4) {
        let number = next.wrappingAdd(1, ordering: .relaxed).oldValue
        do {
          for round in 0..<40 {
            switch number {
            case 0:
              let device = try Device(Self.second, on: machine.host, sharing: dma)
              _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap()
              device.close()
            case 1:
              try dma.switchProtection(to: round % 2 == 0 ? .lazy(FlushQueueOptions(.perCPU)) : .strict)
              try dma.drain()
            default:
              for pages in [1, 3, 600] {
                _ = try dma.map(try dma.buffer(byteCount: pages * 4096), .bidirectional).unmap()
              }
            }
          }
        } catch { failures.withLock { $0.append("\(number): \(error)") } }
      }
      #expect(failures.withLock { $0 } == [])
      #expect(machine.vtdCounters().illegalDescriptors == 0)
      first.close()
    }
    #expect(machine.isClean)
  }
}
