import AddressSpace
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Tables of the process on a simulated SMMUv3, which walks them: commands, refusals, groups, failures.
@Suite struct ProcessOwnedSMMUTests {
  static let first = "0000:00:02.0", second = "0000:00:03.0"

  static func host(
    _ change: (inout SimulatedMachine) -> Void = { _ in }, _ place: (inout [SimulatedDevice]) -> Void = { _ in }
  ) -> SimulatedHost {
    var machine = SimulatedMachine.smmuv3Nested
    change(&machine)
    var devices = [first, second].map { SimulatedDevice($0, EduModel(addressBits: 64)) }
    place(&devices)
    machine.devices = devices
    return SimulatedHost(machine)
  }

  /// Whether a write of a device to an address goes through.
  static func writes(_ device: Device, _ address: IOVA, _ machine: SimulatedHost) throws -> Bool {
    let faults = machine.faults.count
    try EndToEndTests.transfer(try device.registers(bar: 0), address, 8, toDevice: false)
    return machine.faults.count == faults
  }

  static func buffer(_ device: Device, _ pages: Int = 1) throws -> DMABuffer {
    try device.dma.buffer(byteCount: pages * 4096)
  }

  @Test func chosenWhereItCanBe() throws {
    let machine = Self.host()
    do {
      let device = try Device(Self.first, on: machine.host)
      #expect(device.translation == TranslationInUse(.process, "Nested translation is possible here"))
      #expect(
        device.dma.statistics.systemCalls == 0 && device.dma.statistics.invalidations == 0, "opening does not count")
      let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
      #expect(address.rawValue >> 47 == 1 || address.rawValue >> 32 == 0)
      #expect(try Self.writes(device, address, machine))
      _ = try mapping.unmap()
      #expect(try !Self.writes(device, address, machine))
      device.close()
    }
    #expect(machine.isClean)
  }

  /// Each requirement, and what is said where it is not met; then nothing of the attempt is left.
  @Test func refusals() throws {
    let cases: [(String, (inout SimulatedMachine) -> Void)] = [
      ("The SMMU cannot nest stages", { $0.hasCANWBS = false }),
      ("The SMMU cannot nest stages", { $0.smmu.hasStage1 = false }),
      ("The SMMU cannot nest stages", { $0.smmu.hasStage2 = false }),
      ("IDR0.TTENDIAN", { $0.smmu.tableByteOrder = .big }),
      ("IDR0.STALL_MODEL", { $0.smmu.stallModel = .forced }),
      ("IDR5", { ($0.smmu.has4KiBGranule, $0.smmu.has16KiBGranule) = (false, false) }),
    ]
    for (reason, change) in cases {
      let machine = Self.host(change)
      do {
        let device = try Device(Self.first, on: machine.host)
        #expect(device.translation.owner == .kernel && device.translation.reason.hasPrefix(reason), "\(reason)")
        let mapping = try device.dma.map(try Self.buffer(device), .bidirectional)
        #expect(try Self.writes(device, mapping.address, machine))
        _ = try mapping.unmap()
        device.close()
      }
      #expect(machine.isClean)
      do throws(DMAError) {
        _ = try Device(Self.first, on: machine.host, translation: .process)
        Issue.record("opened without \(reason)")
      } catch {
        #expect(error.code == .notSupported && error.detail?.contains(reason) == true && error.device == Self.first)
      }
      #expect(machine.isClean)
    }
  }

  /// S2FWB does in the place of CANWBS, and 8 bits of ASID, 16-bit granules beside, or no range commands keep nobody out.
  @Test func whatDoesAsWell() throws {
    let changes: [(inout SimulatedMachine) -> Void] = [
      { ($0.hasCANWBS, $0.smmu.hasStage2ForcedWriteBack) = (false, true) }, { $0.smmu.has16BitASIDs = false },
      { $0.smmu.hasRangeInvalidation = false }, { $0.smmu.has64KiBGranule = false }, { $0.smmu.outputBits = 48 },
    ]
    for change in changes {
      let machine = Self.host(change)
      do {
        let device = try Device(Self.first, on: machine.host, translation: .process)
        let mapping = try device.dma.map(try Self.buffer(device, 3), .bidirectional), address = mapping.address
        #expect(try Self.writes(device, address + 8192, machine))
        _ = try mapping.unmap()
        #expect(try !Self.writes(device, address + 8192, machine))
        device.close()
      }
      #expect(machine.isClean)
    }
  }

  /// One range command however many pages; without ranges one a page up to a round of 63, and everything beyond.
  @Test(arguments: [(true, 512, 1, 0), (true, 63, 2, 0), (false, 1, 1, 0), (false, 63, 63, 0), (false, 64, 0, 1)])
  func commands(_ hasRanges: Bool, _ pages: Int, _ byAddress: Int, _ byASID: Int) throws {
    let machine = Self.host { $0.smmu.hasRangeInvalidation = hasRanges }
    let device = try Device(Self.first, on: machine.host, translation: .process)
    let mapping = try device.dma.map(try Self.buffer(device, pages), .bidirectional)
    let before = machine.smmuCounters(), statistics = device.dma.statistics
    _ = try mapping.unmap()
    let after = machine.smmuCounters(), counted = device.dma.statistics
    #expect(after.process[.invalidateAddress] - before.process[.invalidateAddress] == byAddress)
    #expect(after.process[.invalidateASID] - before.process[.invalidateASID] == byASID)
    #expect(after.process.syncs - before.process.syncs == 1)
    #expect(after.kernel.tlbInvalidations == before.kernel.tlbInvalidations)
    #expect(counted.invalidations - statistics.invalidations == UInt64(byAddress + byASID))
    #expect(counted.syncs - statistics.syncs == 1 && counted.systemCalls - statistics.systemCalls == 1)
    device.close()
  }

  /// The negative control: hardware that loses an invalidation goes on serving what was there.
  @Test func aLostInvalidationShows() throws {
    let machine = Self.host()
    let device = try Device(Self.first, on: machine.host, translation: .process)
    var reached: [Bool] = []
    for round in 0..<3 {
      let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
      #expect(try Self.writes(device, address, machine))
      if round == 1 { machine.loseInvalidation(1) }
      _ = try mapping.unmap()
      reached.append(try Self.writes(device, address, machine))
    }
    #expect(reached == [false, true, false])
    device.close()
  }

  /// Faults come by the event queue, with the mapping that was there.
  @Test func faultsByTheQueue() throws {
    let machine = Self.host()
    let device = try Device(Self.first, on: machine.host, translation: .process)
    let mapping = try device.dma.map(try Self.buffer(device), .toDevice), address = mapping.address
    #expect(try !Self.writes(device, address + 64, machine))
    _ = try mapping.unmap()
    #expect(try !Self.writes(device, address + 128, machine))
    let faults = device.dma.faults.faults
    #expect(faults.map(\.kind) == [.permission, .translation] && faults.map(\.access) == [.write, .write])
    #expect(faults.map(\.iova) == [address + 64, address + 128])
    #expect(faults.last?.mapping?.range.start == address && faults.last?.mapping?.isLive == false)
    #expect(faults.allSatisfy { $0.device == Self.first && $0.source == .eventQueue })
    #expect(device.dma.faults.count == 2, "none is told twice")
    device.close()
  }

  /// All of a group are attached, so all of it are bound with the first, and given back with the last.
  @Test func aGroup() throws {
    let machine = Self.host({ _ in }) { for index in $0.indices { $0[index].group = 7 } }
    do {
      let first = try Device(Self.first, on: machine.host, translation: .process)
      let second = try Device(Self.second, on: machine.host, sharing: first.dma)
      let mapping = try second.dma.map(try Self.buffer(second), .bidirectional)
      #expect(try Self.writes(first, mapping.address, machine) && Self.writes(second, mapping.address, machine))
      first.close()
      #expect(try Self.writes(second, mapping.address, machine))
      let again = try Device(Self.first, on: machine.host, sharing: second.dma)
      #expect(try Self.writes(again, mapping.address, machine))
      _ = try mapping.unmap()
      second.close()
      again.close()
    }
    #expect(machine.isClean)
    // The one that nobody asked for goes with the one that was.
    try Device(Self.second, on: machine.host, translation: .process).close()
    #expect(machine.isClean)
  }

  @Test func aGroupWithAnotherThatCannot() throws {
    let machine = Self.host({ _ in }) {
      for index in $0.indices { $0[index].group = 7 }
      $0[1].driver = nil
    }
    do {
      let device = try Device(Self.first, on: machine.host)
      #expect(device.translation.owner == .kernel && device.translation.reason.contains(Self.second))
      device.close()
    }
    #expect(machine.isClean)
  }

  /// What a member of the group lacks is said of it, with the kernel's answer.
  @Test func aGroupWithOneThatIsSomebodyElses() throws {
    let machine = Self.host({ _ in }) { for index in $0.indices { $0[index].group = 7 } }
    let kernel = FaultingKernel(machine.kernel)
    for (n, call) in [(3, "open"), (2, "vfioBind")] {
      kernel.fail(n, of: call, with: .accessDenied)
      do throws(DMAError) {
        _ = try Device(Self.first, on: Host(kernel: kernel), translation: .process)
        Issue.record("opened without \(call)")
      } catch {
        #expect(error.errno == .accessDenied && error.detail?.contains(Self.second) == true && error.remedy != nil)
      }
      #expect(machine.isClean && kernel.hasFailed)
      kernel.resetCounts()
    }
  }

  /// A device that cannot join is told why, as on tables of the kernel's; the others go on.
  @Test func joiningFails() throws {
    let machine = Self.host(), kernel = FaultingKernel(machine.kernel), host = Host(kernel: kernel)
    do {
      let first = try Device(Self.first, on: host, translation: .process)
      kernel.fail(1, of: "vfioAttach", with: .busy)
      do throws(DMAError) {
        _ = try Device(Self.second, on: host, sharing: first.dma)
        Issue.record("joined")
      } catch { #expect(error.code == .busy && error.errno == .busy && error.remedy != nil) }
      let mapping = try first.dma.map(try Self.buffer(first), .bidirectional)
      #expect(try Self.writes(first, mapping.address, machine))
      _ = try mapping.unmap()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// Which SMMU a device is behind is sysfs's word; where that is missing, the kernel's refusal of the other's vIOMMU.
  @Test func ofAnUnknownSMMU() throws {
    for n in 1...8 {
      let machine = Self.host({ _ in }) { $0[1].iommuUnit = 1 }, kernel = FaultingKernel(machine.kernel)
      do {
        let host = Host(kernel: kernel), first = try Device(Self.first, on: host, translation: .process)
        kernel.fail(n, of: "readLink", with: .noEntry)
        do {
          let second = try Device(Self.second, on: host, sharing: first.dma)
          let mapping = try second.dma.map(try Self.buffer(second), .bidirectional), address = mapping.address
          #expect(try Self.writes(first, address, machine) && Self.writes(second, address, machine))
          _ = try mapping.unmap()
          #expect(try !Self.writes(first, address, machine) && !Self.writes(second, address, machine))
        } catch { #expect((error as? DMAError)?.errno != .invalidArgument, "\(n): \(error)") }
        kernel.passAll()
      }
      #expect(machine.isClean)
    }
  }

  /// Devices that come and go at the same time, of one group and of others, behind two SMMUs: each gets its own number, and
  /// nothing is left.
  @Test func comingAndGoingAtOnce() throws {
    let others = ["0000:00:04.0", "0000:00:05.0"]
    let machine = Self.host({ _ in }) { devices in
      devices += others.map { SimulatedDevice($0, EduModel(addressBits: 64)) }
      for index in 1..<4 { devices[index].iommuUnit = index == 1 ? 0 : 1 }
      for index in 2..<4 { devices[index].group = 9 }
    }
    do {
      let first = try Device(Self.first, on: machine.host, translation: .process), dma = first.dma
      let next = Atomic<Int>(0), failures = Mutex<[String]>([]), names = [Self.second] + others
      WorkerThreads.run(3) {
        let name = names[next.wrappingAdd(1, ordering: .relaxed).oldValue % 3]
        for _ in 0..<20 {
          do {
            let device = try Device(name, on: machine.host, sharing: dma)
            let mapping = try device.dma.map(try device.dma.buffer(byteCount: 4096), .bidirectional)
            _ = try mapping.unmap()
            device.close()
          } catch { failures.withLock { $0.append("\(name): \(error)") } }
        }
      }
      #expect(failures.withLock { $0 } == [])
      first.close()
    }
    #expect(machine.isClean)
  }

  /// Before Linux 6.15 there is no event queue: faults are in the kernel's log then.
  @Test func withoutAnEventQueue() throws {
    let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
    kernel.fail(1, of: "eventQueueAllocate", with: .notTypewriter)
    do {
      let device = try Device(Self.first, on: Host(kernel: kernel))
      #expect(device.translation.owner == .process && kernel.hasFailed)
      #expect(try !Self.writes(device, IOVA(0x7000_0000), machine))
      #expect(device.dma.faults.faults.map(\.iova) == [IOVA(0x7000_0000)])
      device.close()
    }
    #expect(machine.isClean)
  }

  /// A call that fails leaves commands of its round undone that the kernel counts: everything is invalidated then.
  @Test func aFailedRound() throws {
    let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
    let device = try Device(Self.first, on: Host(kernel: kernel), translation: .process)
    let mapping = try device.dma.map(try Self.buffer(device), .bidirectional), address = mapping.address
    #expect(try Self.writes(device, address, machine))
    kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    _ = try mapping.unmap()
    #expect(try !Self.writes(device, address, machine))
    #expect(machine.smmuCounters().process[.invalidateASID] == 1 && device.dma.statistics.leakedBytes == 0)
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

  /// The n-th call of opening fails, for every n: an error or the kernel's tables, and nothing is left.
  @Test(arguments: [TranslationChoice.process, .automatic]) func everyCallOfOpening(_ choice: TranslationChoice) throws
  {
    for n in 1...200 {
      let machine = Self.host(), kernel = FaultingKernel(machine.kernel)
      kernel.fail(n, with: .inputOutput)
      var hasFailed = true
      do {
        if let device = try? Device(Self.first, on: Host(kernel: kernel), translation: choice) {
          hasFailed = kernel.hasFailed
          device.close()
        }
      }
      #expect(machine.isClean, "call \(n), \(kernel.failedName ?? "none")")
      if !hasFailed { return }
    }
    Issue.record("opening takes more calls than that")
  }

  /// Tables grow with the addresses in use, each piece by one call.
  @Test func manyTables() throws {
    let machine = Self.host()
    do {
      let device = try Device(Self.first, on: machine.host, translation: .process), dma = device.dma
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      let before = dma.statistics.tableBytes
      var maps: [UnsafeBox] = []
      for index in 0..<200 as Range<UInt64> {
        let place = IOVA(0x1_0000_0000 + index << 21)
        maps.append(UnsafeBox(try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .bidirectional, at: place)))
      }
      #expect(dma.statistics.tableBytes >= before + 184 * 4096)
      #expect(try Self.writes(device, IOVA(0x1_0000_0000 + 199 << 21), machine))
      #expect(dma.statistics.implicitRegistrations == 200)
      maps.removeAll()
      device.close()
    }
    #expect(machine.isClean)
  }

  private final class UnsafeBox {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}
