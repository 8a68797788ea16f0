import IOMMU
import IOMMUSimulation
import Testing

/// Containers: extensions, information, the entry limit, version 1, several groups.
@Suite struct Type1Tests {
  @Test func extensions() throws {
    let rig = try ContainerRig()
    #expect(try rig.kernel.vfioAPIVersion(rig.container) == 0)
    for (id, answer) in [(1, 1), (3, 1), (6, 0), (8, 0), (9, 1), (10, 1)] as [(UInt32, Int32)] {
      #expect(try rig.kernel.vfioCheckExtension(rig.container, id) == answer, "extension \(id)")
    }
    rig.close()
  }

  @Test func information() throws {
    let rig = try ContainerRig()
    try rig.map(at: 0x1000)
    let info = try rig.kernel.vfioContainerInfo(rig.container)
    #expect(info.pageSizes == 0x4020_1000)
    #expect(info.ranges?.map(\.description) == ["0x0–0xfedfffff", "0xfef00000–0xffffffffffff"])
    #expect(info.availableEntries == 65_534)
    rig.close()
  }

  @Test func entryLimit() throws {
    var machine = SimulatedMachine.vtd
    machine.mappingLimit = 3
    let rig = try ContainerRig(machine)
    for page in 0..<3 as Range<UInt64> { try rig.map(at: 0x1000 * (page + 1), offset: 0x1000 * page) }
    #expect(throws: Errno.noSpace) { try rig.map(at: 0x10000) }
    // An overlap is found before the limit.
    #expect(throws: Errno.exists) { try rig.map(at: 0x1000) }
    try rig.unmap(0x1000, 0x1000)
    try rig.map(at: 0x10000)
    rig.close()
  }

  @Test func versionOneUnmapsWholeEntries() throws {
    let rig = try ContainerRig(type: 1)
    try rig.map(at: 0x4000, byteCount: 0x4000)
    #expect(try rig.unmap(0x5000, 0x1000) == 0)
    #expect(try rig.unmap(0x4000, 0x1000) == 0x4000)
    rig.close()
  }

  @Test func lastGroupTakesTheMaps() throws {
    let rig = try ContainerRig()
    try rig.map(at: 0x1000)
    rig.kernel.close(rig.device)
    try rig.kernel.vfioUnsetContainer(group: rig.group)
    #expect(rig.machine.kernel.census.areas == 0)
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    #expect(throws: Errno.invalidArgument) { try rig.kernel.vfioUnsetContainer(group: rig.group) }
    // The container is as new.
    #expect(throws: Errno.invalidArgument) { try rig.map(at: 0x1000) }
    #expect(throws: Errno.invalidArgument) { try rig.kernel.vfioSetIOMMU(rig.container, type: 3) }
    try rig.kernel.vfioSetContainer(group: rig.group, container: rig.container)
    try rig.kernel.vfioSetIOMMU(rig.container, type: 3)
    try rig.map(at: 0x1000)
    rig.close()
  }

  @Test func orderOfContainerAndBackend() throws {
    let machine = SimulatedHost(devices: [IOMMUFDRig.address: EduModel()])
    let kernel = machine.kernel
    let container = try kernel.open("/dev/vfio/vfio"), group = try kernel.open("/dev/vfio/0")
    #expect(try kernel.vfioGroupStatus(group) == 1)
    #expect(throws: Errno.invalidArgument) { try kernel.vfioSetIOMMU(container, type: 3) }
    #expect(throws: Errno.invalidArgument) { try kernel.vfioGroupDevice(group, name: IOMMUFDRig.address) }
    #expect(throws: Errno.badDescriptor) { try kernel.vfioSetContainer(group: group, container: -1) }
    #expect(throws: Errno.badFileState) { try kernel.vfioSetContainer(group: group, container: group) }
    try kernel.vfioSetContainer(group: group, container: container)
    #expect(try kernel.vfioGroupStatus(group) == 3)
    #expect(throws: Errno.invalidArgument) { try kernel.vfioGroupDevice(group, name: IOMMUFDRig.address) }
    #expect(throws: Errno.noDevice) { try kernel.vfioSetIOMMU(container, type: 7) }
    #expect(throws: Errno.noDevice) { try kernel.vfioSetIOMMU(container, type: 8) }
    try kernel.vfioSetIOMMU(container, type: 3)
    // The container's descriptor may go; its groups keep it.
    kernel.close(container)
    let device = try kernel.vfioGroupDevice(group, name: IOMMUFDRig.address)
    // The group may be closed before its devices.
    kernel.close(group)
    #expect(throws: Errno.busy) { try kernel.open("/dev/vfio/0") }
    kernel.close(device)
    kernel.close(try kernel.open("/dev/vfio/0"))
    #expect(machine.isClean)
  }

  @Test func twoGroupsShareTheDomain() throws {
    let machine = SimulatedHost(devices: [
      "0000:03:00.0": EduModel(addressBits: 64), "0000:04:00.0": EduModel(addressBits: 64),
    ])
    let kernel = machine.kernel
    let container = try kernel.open("/dev/vfio/vfio")
    let groups = try (0..<2).map { try kernel.open("/dev/vfio/\($0)") }
    try kernel.vfioSetContainer(group: groups[0], container: container)
    try kernel.vfioSetIOMMU(container, type: 3)
    let memory = try Memory(kernel)
    try kernel.vfioMap(container, flags: 3, address: memory.address, iova: 0x1000, byteCount: 4096)
    try kernel.vfioSetContainer(group: groups[1], container: container)
    let device = Registers(
      kernel: kernel, device: try kernel.vfioGroupDevice(groups[1], name: "0000:04:00.0"))
    try device.enable()
    try device.write(0x80, 0x40000, width: 8)
    try device.write(0x88, 0x1000, width: 8)
    try device.write(0x90, 8, width: 8)
    try device.write(0x98, 3, width: 8)
    #expect(machine.faults.isEmpty)
    // The first group leaves: the second keeps the maps.
    try kernel.vfioUnsetContainer(group: groups[0])
    #expect(try kernel.vfioUnmap(container, flags: 2, iova: 0, byteCount: 0) == 4096)
    for descriptor in [device.device, groups[0], groups[1], container] { kernel.close(descriptor) }
    memory.close()
    #expect(machine.isClean)
  }
}
