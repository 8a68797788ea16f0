import IOMMU
import IOMMUSimulation
import Testing

/// Binding, attaching, replacing, detaching.
@Suite struct AttachTests {
  @Test func bindErrors() throws {
    let machine = SimulatedHost(devices: [IOMMUFDRig.address: EduModel()])
    let kernel = machine.kernel
    let iommufd = try kernel.open("/dev/iommu"), device = try kernel.open("/dev/vfio/devices/vfio0")
    // Before BIND every other call is EINVAL.
    #expect(throws: Errno.invalidArgument) { try kernel.vfioDeviceInfo(device) }
    #expect(throws: Errno.invalidArgument) { try kernel.vfioRegionInfo(device, index: 0) }
    #expect(throws: Errno.invalidArgument) { try kernel.vfioAttach(device, pageTable: 1) }
    #expect(throws: Errno.invalidArgument) {
      try Registers(kernel: kernel, device: device).config(0, width: 4)
    }
    #expect(throws: Errno.invalidArgument) { try kernel.vfioBind(device, iommufd: -2, token: nil) }
    #expect(throws: Errno.badDescriptor) { try kernel.vfioBind(device, iommufd: 0x4fff_0000, token: nil) }
    #expect(throws: Errno.badFileState) { try kernel.vfioBind(device, iommufd: device, token: nil) }
    #expect(throws: Errno.invalidArgument) {
      try kernel.vfioBind(device, iommufd: iommufd, token: [UInt8](repeating: 0, count: 16))
    }
    #expect(try kernel.vfioBind(device, iommufd: iommufd, token: nil) == 1)
    #expect(throws: Errno.invalidArgument) { try kernel.vfioBind(device, iommufd: iommufd, token: nil) }
    // The node can be opened again, the device not be bound again.
    let second = try kernel.open("/dev/vfio/devices/vfio0")
    #expect(throws: Errno.invalidArgument) { try kernel.vfioBind(second, iommufd: iommufd, token: nil) }
    for descriptor in [second, device, iommufd] { kernel.close(descriptor) }
    #expect(machine.isClean)
  }

  @Test func attachErrors() throws {
    let rig = try IOMMUFDRig()
    #expect(throws: Errno.noEntry) { try rig.kernel.vfioAttach(rig.device, pageTable: .max) }
    #expect(throws: Errno.invalidArgument) { try rig.kernel.vfioAttach(rig.device, pageTable: rig.deviceID) }
    try rig.kernel.vfioDetach(rig.device)
    try rig.kernel.vfioDetach(rig.device)
    rig.close()
  }

  @Test func attachToAnIOASMakesAPageTable() throws {
    let rig = try IOMMUFDRig()
    let ioas = try rig.kernel.ioasAllocate(rig.iommufd)
    let table = try rig.kernel.vfioAttach(rig.device, pageTable: ioas)
    #expect(table != ioas && table != rig.hwpt)
    #expect(throws: Errno.busy) { try rig.kernel.iommufdDestroy(rig.iommufd, id: table) }
    // It goes with its last device; the one that was made by hand stays.
    try rig.kernel.vfioDetach(rig.device)
    #expect(throws: Errno.noEntry) { try rig.kernel.iommufdDestroy(rig.iommufd, id: table) }
    try rig.kernel.iommufdDestroy(rig.iommufd, id: rig.hwpt)
    try rig.kernel.iommufdDestroy(rig.iommufd, id: ioas)
    rig.close()
  }

  @Test func replaceMovesTheDevice() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    let empty = try rig.kernel.ioasAllocate(rig.iommufd)
    let other = try rig.kernel.hwptAllocate(rig.iommufd, flags: 0, device: rig.deviceID, pageTable: empty)
    #expect(try rig.edu(0x1000, 8, toMemory: true))
    let before = rig.machine.counters.invalidations
    #expect(try rig.kernel.vfioAttach(rig.device, pageTable: other) == other)
    #expect(rig.machine.counters.invalidations == before + 1)
    #expect(try !rig.edu(0x1000, 8, toMemory: true))
    try rig.kernel.iommufdDestroy(rig.iommufd, id: rig.hwpt)
    #expect(try rig.kernel.vfioAttach(rig.device, pageTable: other) == other)
    rig.close()
  }

  @Test func detachBlocks() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    try rig.kernel.vfioDetach(rig.device)
    #expect(try !rig.edu(0x1000, 8, toMemory: true))
    #expect(rig.machine.faults.last?.reason == .blocked)
    // Maps stay, and count again after an attach.
    _ = try rig.kernel.vfioAttach(rig.device, pageTable: rig.hwpt)
    #expect(try rig.edu(0x1000, 8, toMemory: true))
    rig.close()
  }

  @Test func descriptorsCloseInAnyOrder() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    // A bound device keeps the iommufd, its objects and its maps.
    rig.kernel.close(rig.iommufd)
    #expect(try rig.edu(0x1000, 8, toMemory: true))
    #expect(rig.machine.kernel.census.areas == 1)
    #expect(throws: Errno.badDescriptor) { try rig.unmap(0x1000, 4096) }
    rig.close()
  }

  @Test func twoDevicesOfAGroupShareAPageTable() throws {
    var machine = SimulatedMachine.vtd
    for function in 0..<2 {
      var device = SimulatedDevice("0000:05:00.\(function)", EduModel(addressBits: 64))
      device.group = 7
      machine.devices.append(device)
    }
    let simulated = SimulatedHost(machine)
    let kernel = simulated.kernel
    let iommufd = try kernel.open("/dev/iommu")
    let nodes = try (0..<2).map { try kernel.open("/dev/vfio/devices/vfio\($0)") }
    let ids = try nodes.map { try kernel.vfioBind($0, iommufd: iommufd, token: nil) }
    let ioas = try kernel.ioasAllocate(iommufd)
    let table = try kernel.hwptAllocate(iommufd, flags: 0, device: ids[0], pageTable: ioas)
    let other = try kernel.hwptAllocate(iommufd, flags: 0, device: ids[0], pageTable: ioas)
    _ = try kernel.vfioAttach(nodes[0], pageTable: table)
    // A first attach joins the group's page table and no other.
    #expect(throws: Errno.invalidArgument) { try kernel.vfioAttach(nodes[1], pageTable: other) }
    _ = try kernel.vfioAttach(nodes[1], pageTable: table)
    // Another iommufd gets nothing of the group.
    let stranger = try kernel.open("/dev/iommu")
    kernel.close(nodes[1])
    let again = try kernel.open("/dev/vfio/devices/vfio1")
    #expect(throws: Errno.notPermitted) { try kernel.vfioBind(again, iommufd: stranger, token: nil) }
    for descriptor in [again, nodes[0], stranger, iommufd] { kernel.close(descriptor) }
    #expect(simulated.isClean)
  }
}
