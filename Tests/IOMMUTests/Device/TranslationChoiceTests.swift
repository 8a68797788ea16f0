import IOMMU
import IOMMUSimulation
import Testing

/// Who gets to own the page tables, and what is said about it.
@Suite struct TranslationChoiceTests {
  private static let address = "0000:00:02.0", other = "0000:00:03.0"

  private func machine(_ change: (inout SimulatedMachine) -> Void = { _ in }) -> SimulatedHost {
    var machine = SimulatedMachine.vtd
    change(&machine)
    return SimulatedHost(
      machine, devices: [Self.address: EduModel(addressBits: 64), Self.other: EduModel(addressBits: 64)])
  }

  @Test func theProcessWhereItCan() throws {
    let device = try Device(Self.address, on: machine().host)
    #expect(device.translation.owner == .process && device.translation.reason == "Nested translation is possible here")
    #expect(device.dma.translation == device.translation)
    device.close()
    let asked = try Device(Self.address, on: machine().host, translation: .process)
    #expect(asked.translation.owner == .process && asked.translation.reason == "Asked for")
    asked.close()
  }

  @Test func theKernelWhereAskedForOrAlone() throws {
    let asked = try Device(Self.address, on: machine().host, translation: .kernel)
    #expect(asked.translation.owner == .kernel && asked.translation.reason == "Asked for")
    #expect("\(asked.translation)" == "kernel: Asked for")
    asked.close()
    let without = try Device(Self.address, on: machine { $0.hasNestedTranslation = false }.host)
    #expect(without.translation.owner == .kernel)
    #expect(without.translation.reason == "The simulated machine has no nested translation")
    without.close()
    let type1 = try Device(Self.address, on: machine().host, interface: .type1)
    #expect(type1.translation.owner == .kernel)
    #expect(type1.translation.reason == "A type1 container has no nested translation")
    type1.close()
  }

  /// Refused with the reason, and nothing is opened on the way.
  @Test(arguments: [Interface?.none, .iommufd, .type1])
  func theProcessWhereItCannot(_ interface: Interface?) throws {
    let machine = machine { $0.hasNestedTranslation = false }
    do throws(DMAError) {
      _ = try Device(Self.address, on: machine.host, interface: interface, translation: .process)
      Issue.record("opened")
    } catch {
      #expect(error.code == .notSupported && error.device == Self.address && error.remedy != nil)
      #expect(error.detail?.contains("nested translation") == true)
    }
    #expect(machine.isClean)
  }

  @Test func sharingFollowsTheDomain() throws {
    let machine = machine()
    for owner in TranslationInUse.Owner.allCases {
      let choice = TranslationChoice(rawValue: owner.rawValue)!
      let first = try Device(Self.address, on: machine.host, translation: choice)
      let second = try Device(Self.other, on: machine.host, sharing: first.dma)
      #expect(second.translation.owner == owner && second.translation.reason == "The shared domain's")
      second.close()
      let wrong: TranslationChoice = owner == .kernel ? .process : .kernel
      #expect(throws: DMAError.self) {
        _ = try Device(Self.other, on: machine.host, translation: wrong, sharing: first.dma)
      }
      try Device(Self.other, on: machine.host, translation: choice, sharing: first.dma).close()
      first.close()
    }
    #expect(machine.isClean)
  }

  @Test func descriptorsOfALauncher() throws {
    let machine = machine(), kernel = machine.kernel
    for choice in TranslationChoice.allCases {
      let node = try kernel.open("/dev/vfio/devices/vfio0"), iommufd = try kernel.open("/dev/iommu")
      let device = try Device(
        Self.address, characterDevice: node, iommufd: iommufd, on: machine.host, translation: choice)
      #expect(device.translation.owner == (choice == .kernel ? .kernel : .process))
      device.close()
    }
    let without = self.machine { $0.hasNestedTranslation = false }
    let node = try without.kernel.open("/dev/vfio/devices/vfio0"), iommufd = try without.kernel.open("/dev/iommu")
    #expect(throws: DMAError.self) {
      _ = try Device(
        Self.address, characterDevice: node, iommufd: iommufd, on: without.host, translation: .process)
    }
    #expect(machine.isClean && without.isClean)
  }

  @Test func aRealKernelHasNoFlatFormat() throws {
    let kernel = LiveKernel()
    #expect(!kernel.hasFlatFormat)
    #expect(throws: Errno.notSupported) {
      try kernel.hwptAllocate(
        -1, flags: 0, device: 0, pageTable: 0, data: HWPTData(type: FlatFormat.dataType, bytes: []))
    }
    #expect(throws: Errno.notSupported) {
      try unsafe kernel.hwptInvalidate(
        -1, pageTable: 0, type: FlatFormat.dataType, entries: UnsafeRawBufferPointer(start: nil, count: 0),
        byteCount: 24)
    }
    #expect(throws: Errno.badDescriptor) {
      try kernel.hwptAllocate(-1, flags: 0, device: 0, pageTable: 0, data: HWPTData(type: 1, bytes: [0]))
    }
  }
}
