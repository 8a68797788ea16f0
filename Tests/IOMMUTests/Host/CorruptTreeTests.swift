import CapturedTrees
import IOMMU
import Testing

@Suite struct CorruptTreeTests {
  @Test func corruptDevicesAreToldNotThrown() throws {
    let devices = try Fixture.corrupt.host().devices()
    #expect(devices.map(\.address.device) == [1, 2, 3, 4, 5, 6, 7])
    let base = "/sys/bus/pci/devices/0000:00"
    #expect(devices[0].vendor == nil && devices[0].device == nil && devices[0].classCode == nil)
    for file in [
      "vendor", "device", "class", "driver", "iommu_group", "numa_node", "driver_override", "vfio-dev",
    ] {
      #expect(devices[0].unread.contains("\(base):01.0/\(file)"))
    }
    #expect(devices[0].status == .unknown)
    #expect(devices[5].vendor == 0x8086 && devices[5].group == 4)
    #expect(devices[6].status == .unknown)
    #expect(devices[6].unread.contains("\(base):07.0/iommu_group"))
    // Whatever is missing of a device that is a loop, a dangling link or a file, its paths are told.
    for index in 1...4 { #expect(!devices[index].unread.isEmpty) }
  }

  @Test func corruptGroupsAndUnits() throws {
    let host = try Fixture.corrupt.host()
    let groups = try host.groups()
    #expect(groups.map(\.id) == [4, 5])
    #expect(groups[0].viable == nil && groups[0].type == nil)
    #expect(groups[0].members.map(\.isDriverKnown) == [false, false, false])
    #expect(groups[0].unread.contains("/sys/kernel/iommu_groups/4/type"))
    let regions = try host.reservedRegions(ofGroup: 4)
    #expect(regions.regions.map(\.type.rawValue) == ["msi", "later"])
    #expect(regions.unread == ["/sys/kernel/iommu_groups/4/reserved_regions"])
    let units = try host.units()
    #expect(units.map(\.name) == ["dmar0", "dmar1", "ivhd0"])
    #expect(units.allSatisfy { !$0.unread.isEmpty })
    #expect(units[0].capabilities == nil && units[0].remapsInterrupts == nil)
  }

  @Test func corruptDetails() throws {
    let host = try Fixture.corrupt.host()
    for text in ["00:01.0", "00:04.0", "00:06.0", "00:07.0"] {
      _ = try host.details(of: address(text))
      _ = try host.topology(of: address(text))
      _ = try host.peerWindows(of: address(text))
    }
    let details = try host.details(of: address("00:01.0"))
    #expect(details.isEnabled == nil && details.revision == nil && details.resetMethods == nil)
    #expect(details.resources.map(\.index) == [1])
    // A capability list that points to itself ends.
    #expect(try host.details(of: address("00:06.0")).accessControl == nil)
  }

  /// Every one of many trees, each a fixture with some entries replaced, removed or garbled, is read to its end.
  @Test(arguments: [Fixture.laptop, .server, .noIOMMU, .type1Only, .corrupt])
  func mutatedTreesNeitherTrapNorThrowUntyped(fixture: Fixture) throws {
    let original = try fixture.tree
    let rounds = CommandLine.environmentNumber("IOMMU_FUZZ_ROUNDS") ?? 60
    for seed in 0..<UInt64(rounds) {
      var mutator = TreeMutator(seed: seed)
      let tree = mutator.mutated(original)
      withKnownSeed(seed) { exercise(Host(kernel: TreeKernel(tree))) }
    }
  }

  private func withKnownSeed(_ seed: UInt64, _ body: () -> [any Error]) {
    for error in body() where !(error is DMAError) { Issue.record("seed \(seed): untyped error \(error)") }
  }

  /// Calls all there is to call; returns what was thrown.
  private func exercise(_ host: Host) -> [any Error] {
    var errors: [any Error] = []
    func attempt(_ body: () throws -> Void) { do { try body() } catch { errors.append(error) } }
    attempt { _ = try host.units() }
    attempt { for group in try host.groups() { _ = try host.reservedRegions(ofGroup: group.id) } }
    attempt {
      for device in try host.devices(named: false) {
        attempt { _ = try host.device(device.address, named: false) }
        attempt { _ = try host.details(of: device.address) }
        attempt { _ = try host.peerWindows(of: device.address) }
      }
    }
    return errors
  }
}
