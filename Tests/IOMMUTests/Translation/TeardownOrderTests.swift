import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// In which order a device comes and goes over tables of the process, call by call: it may do DMA as long as bus mastering is on, and
/// must be attached to nothing else meanwhile. A destroy that the kernel refuses would have its EBUSY in the journal.
@Suite struct TeardownOrderTests {
  private static let first = "0000:00:02.0", second = "0000:00:03.0"
  /// How a device is brought to rest.
  private static let rest = ["bus master off", "interrupts off", "detach"]

  /// A machine with two devices, and what is done to it.
  private struct Rig {
    let machine: SimulatedHost
    let kernel: FaultingKernel

    init(_ machine: SimulatedMachine, secondUnit: Int = 0) {
      var machine = machine
      machine.devices = [first, second].map { SimulatedDevice($0, EduModel(addressBits: 64)) }
      machine.devices[1].iommuUnit = secondUnit
      self.machine = SimulatedHost(machine)
      kernel = FaultingKernel(self.machine.kernel)
    }

    func open(_ address: String, sharing domain: DMADomain? = nil) throws -> Device {
      let choice = domain == nil ? TranslationChoice.process : .automatic
      return try Device(address, on: Host(kernel: kernel), translation: choice, sharing: domain)
    }

    /// What is done by something.
    func journal(_ body: () throws -> Void) rethrows -> [String] {
      kernel.keepJournal()
      try body()
      return kernel.journal
    }
  }

  /// Bus mastering is off until the device is attached, and until all that could go wrong has not.
  @Test(arguments: [SimulatedMachine.vtd, .smmuv3Nested, .vtdNested])
  func busMasteringComesLast(_ machine: SimulatedMachine) throws {
    let rig = Rig(machine)
    do {
      var device: Device?
      let opening = try rig.journal { device = try rig.open(Self.first) }
      #expect(opening.filter { $0.hasPrefix("bus master") || $0 == "attach" } == ["attach", "bus master on"])
      #expect(opening.last == "bus master on")
      var other: Device?
      let joining = try rig.journal { other = try rig.open(Self.second, sharing: device!.dma) }
      #expect(joining == ["attach", "bus master on"])
      let leaving = rig.journal { other!.close() }, last = rig.journal { device!.close() }
      for journal in [leaving, last] {
        #expect(journal.first == "bus master off" && !journal.contains("bus master on"))
        #expect(journal.filter { $0 == "detach" }.count == 1 && !journal.contains { $0.contains("EBUSY") })
      }
    }
    #expect(rig.machine.isClean)
  }

  /// The last device: nested table, event queue, vIOMMU, stage 2 in steps (an area of tables, one of the arena, and all that there
  /// might be besides), parent, IOAS. The process invalidates nothing. Its vDEVICE goes before, as it would with its descriptor.
  @Test func teardownIsOrderedOnAnSMMU() throws {
    let rig = Rig(.smmuv3Nested)
    do {
      let device = try rig.open(Self.first), before = rig.machine.smmuCounters()
      _ = try device.interrupt(0)
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 1 << 20), .bidirectional)
      let closing = rig.journal { device.close() }
      #expect(
        closing == Self.rest + [
          "destroy vdevice", "close device", "destroy nested", "close events", "destroy events", "destroy viommu",
          "unmap", "unmap", "unmap", "destroy parent", "destroy ioas", "close iommufd",
        ])
      #expect(rig.machine.smmuCounters().process == before.process)
      _ = try mapping.unmap()
    }
    #expect(rig.machine.isClean)
  }

  /// The same without vIOMMUs.
  @Test func teardownIsOrderedOnAVTd() throws {
    let rig = Rig(.vtdNested)
    do {
      let device = try rig.open(Self.first), before = rig.machine.vtdCounters()
      _ = try device.interrupt(0)
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 1 << 20), .bidirectional)
      let closing = rig.journal { device.close() }
      #expect(
        closing == Self.rest + [
          "close device", "destroy nested", "unmap", "unmap", "unmap", "destroy parent", "destroy ioas",
          "close iommufd",
        ])
      #expect(rig.machine.vtdCounters().process == before.process)
      _ = try mapping.unmap()
    }
    #expect(rig.machine.isClean)
  }

  /// A device that leaves others behind on its SMMU gives up its number, and what is cached under the tag goes by one command; one that
  /// was the only one on its SMMU takes all of that with it, and has nothing invalidated.
  @Test(arguments: [0, 1]) func oneOfTwoOnAnSMMU(_ unit: Int) throws {
    let rig = Rig(.smmuv3Nested, secondUnit: unit)
    do {
      let device = try rig.open(Self.first), other = try rig.open(Self.second, sharing: device.dma)
      _ = try other.interrupt(0)
      let slice = ["destroy nested", "close events", "destroy events", "destroy viommu", "destroy parent"]
      let leaving = rig.journal { other.close() }
      let gone = unit == 0 ? ["invalidate"] : slice
      #expect(leaving == Self.rest + ["destroy vdevice"] + gone + ["close device"])
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 4096), .bidirectional),
        address = mapping.address
      #expect(try ProcessOwnedVTdTests.reaches(device, address, rig.machine))
      _ = try mapping.unmap()
      let last = rig.journal { device.close() }
      #expect(
        last.filter { $0.hasPrefix("destroy") } == ["destroy vdevice"] + slice.filter { $0.hasPrefix("destroy") } + [
          "destroy ioas"
        ])
    }
    #expect(rig.machine.isClean)
  }

  /// On a VT-d the kernel knows which devices share a tag, and sees to it.
  @Test(arguments: [0, 1]) func oneOfTwoOnAVTd(_ unit: Int) throws {
    let rig = Rig(.vtdNested, secondUnit: unit)
    do {
      let device = try rig.open(Self.first), other = try rig.open(Self.second, sharing: device.dma)
      _ = try other.interrupt(0)
      let leaving = rig.journal { other.close() }
      #expect(leaving == Self.rest + (unit == 0 ? [] : ["destroy nested", "destroy parent"]) + ["close device"])
      device.close()
    }
    #expect(rig.machine.isClean)
  }

  /// The n-th call fails while a device behind another IOMMU joins, for every n: an error, the first goes on, and nothing is left of
  /// the other.
  @Test(arguments: [SimulatedMachine.smmuv3Nested, .vtdNested])
  func everyCallOfJoiningAnotherUnit(_ machine: SimulatedMachine) throws {
    for n in 1...200 {
      let rig = Rig(machine, secondUnit: 1)
      var hasFailed = true
      do {
        let device = try rig.open(Self.first)
        let mapping = try device.dma.map(try device.dma.buffer(byteCount: 4096), .bidirectional),
          address = mapping.address
        let before = rig.machine.kernel.census
        rig.kernel.resetCounts()
        // The thread that waits for the first one's events calls when it likes.
        rig.kernel.fail(n, except: ["waitReadable"], with: .inputOutput)
        let other = try? rig.open(Self.second, sharing: device.dma)
        hasFailed = rig.kernel.hasFailed
        let failed = "call \(n), \(rig.kernel.failedName ?? "none")"
        rig.kernel.passAll()
        if other == nil {
          let after = rig.machine.kernel.census
          #expect(hasFailed, "\(failed)")
          #expect(
            after.nestingObjects == before.nestingObjects && after.pageTables == before.pageTables
              && after.pinnedBytes == before.pinnedBytes && after.areas == before.areas, "\(failed)")
        }
        #expect(try ProcessOwnedVTdTests.reaches(device, address, rig.machine), "\(failed)")
        if let other { #expect(try ProcessOwnedVTdTests.reaches(other, address, rig.machine), "\(failed)") }
        _ = try mapping.unmap()
        #expect(try !ProcessOwnedVTdTests.reaches(device, address, rig.machine), "\(failed)")
        if let other { #expect(try !ProcessOwnedVTdTests.reaches(other, address, rig.machine), "\(failed)") }
        // It can join once the kernel lets it.
        let again = try other ?? rig.open(Self.second, sharing: device.dma)
        again.close()
        device.close()
      }
      #expect(rig.machine.isClean, "call \(n)")
      if !hasFailed { return }
    }
    Issue.record("joining takes more calls than that")
  }
}
