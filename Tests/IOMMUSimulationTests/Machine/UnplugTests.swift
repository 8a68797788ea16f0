import IOMMU
import IOMMUSimulation
import Testing

/// A device that goes away while it is used.
@Suite struct UnplugTests {
  @Test func userIsAskedAndCallsFail() throws {
    let rig = try IOMMUFDRig()
    try rig.map(at: 0x1000)
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.request, start: 0, events: [event])
    rig.machine.unplug(IOMMUFDRig.address)
    #expect(try rig.kernel.takeEvent(event) == 1)
    #expect(throws: Errno.noDevice) { try rig.kernel.vfioDeviceInfo(rig.device) }
    #expect(throws: Errno.noDevice) { try rig.kernel.vfioReset(rig.device) }
    #expect(throws: Errno.noDevice) { try rig.kernel.vfioAttach(rig.device, pageTable: rig.hwpt) }
    // Registers and config space read as all ones; writes go nowhere.
    #expect(rig.registers[0, 4] == 0xffff_ffff)
    #expect(try rig.registers.config(0, width: 4) == 0xffff_ffff)
    try rig.registers.write(0, 1, width: 4)
    try rig.registers.setConfig(4, 6, width: 2)
    // The maps are the user's to take down.
    #expect(try rig.unmap(0, .max) == 4096)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func filesVanish() throws {
    let machine = SimulatedHost(devices: [IOMMUFDRig.address: EduModel(), "0000:04:00.0": EduModel()])
    machine.unplug(IOMMUFDRig.address)
    #expect(try machine.kernel.listDirectory("/sys/bus/pci/devices") == ["0000:04:00.0"])
    #expect(try machine.kernel.listDirectory("/dev/vfio/devices") == ["vfio1"])
    #expect(throws: Errno.noEntry) { try machine.kernel.open("/dev/vfio/0") }
    // Again, and another that never was.
    machine.unplug(IOMMUFDRig.address)
    machine.unplug("0000:09:00.0")
    machine.unplug("nonsense")
  }

  @Test func groupPath() throws {
    let rig = try ContainerRig()
    try rig.map(at: 0x1000)
    rig.machine.unplug(IOMMUFDRig.address)
    #expect(throws: Errno.noDevice) { try rig.kernel.vfioDeviceInfo(rig.device) }
    #expect(throws: Errno.noDevice) { try rig.kernel.vfioGroupDevice(rig.group, name: IOMMUFDRig.address) }
    #expect(try rig.unmap(0, 0, flags: 2) == 4096)
    rig.close()
  }

  @Test func removeBySysfs() throws {
    let machine = SimulatedHost(devices: [IOMMUFDRig.address: EduModel()])
    try machine.kernel.writeFile("/sys/bus/pci/devices/\(IOMMUFDRig.address)/remove", "1")
    #expect(try machine.kernel.listDirectory("/sys/bus/pci/devices").isEmpty)
  }

  @Test func noMoreDMA() throws {
    let rig = try IOMMUFDRig(model: EduModel(addressBits: 64, delay: .milliseconds(10)))
    try rig.map(at: 0x1000)
    rig.memory[0] = 0x55
    _ = try rig.edu(0x1000, 8, toMemory: true)
    rig.machine.unplug(IOMMUFDRig.address)
    rig.kernel.sleep(.milliseconds(20))
    #expect(rig.memory[0] == 0x55)
    #expect(rig.machine.faults.isEmpty)
    rig.close()
  }
}
