import IOMMU
import IOMMUSimulation
import Testing

/// The kernel that fails on purpose.
@Suite struct FaultingKernelTests {
  @Test func failsTheNthCall() throws {
    let kernel = FaultingKernel(SimulatedKernel(.vtd))
    kernel.fail(3, with: .noMemory)
    _ = try kernel.listDirectory("/sys")
    kernel.close(-1)  // cannot fail, is not counted among those that can
    _ = kernel.now()
    _ = try kernel.listDirectory("/dev")
    #expect(!kernel.hasFailed)
    #expect(throws: Errno.noMemory) { try kernel.listDirectory("/sys") }
    #expect(kernel.hasFailed)
    _ = try kernel.listDirectory("/sys")
    #expect(kernel.callCount == 4)
    #expect(
      kernel.names == ["listDirectory", "close", "now", "listDirectory", "listDirectory", "listDirectory"])
    #expect(kernel.count(of: "listDirectory") == 4)
    kernel.resetCounts()
    #expect(kernel.callCount == 0 && kernel.names.isEmpty && !kernel.hasFailed)
  }

  @Test func failsOneByName() throws {
    let kernel = FaultingKernel(SimulatedKernel(.vtd))
    kernel.fail(2, of: "open", with: .tooManyDescriptors)
    let first = try kernel.open("/dev/iommu")
    _ = try kernel.listDirectory("/dev")
    #expect(throws: Errno.tooManyDescriptors) { try kernel.open("/dev/iommu") }
    kernel.close(try kernel.open("/dev/iommu"))
    kernel.failFrom(1, of: "ioasAllocate", with: .interrupted)
    for _ in 0..<3 { #expect(throws: Errno.interrupted) { try kernel.ioasAllocate(first) } }
    kernel.passAll()
    _ = try kernel.ioasAllocate(first)
    kernel.close(first)
  }

  @Test func everyCallOfBringUpCanFail() throws {
    var n = 0
    while true {
      n += 1
      let base = SimulatedHost(devices: [IOMMUFDRig.address: EduModel()])
      let kernel = FaultingKernel(base.kernel)
      kernel.fail(n, with: .inputOutput)
      var open: [Int32] = []
      defer { open.forEach(kernel.close) }
      do {
        open.append(try kernel.open("/dev/iommu"))
        open.append(try kernel.open("/dev/vfio/devices/vfio0"))
        let id = try kernel.vfioBind(open[1], iommufd: open[0], token: nil)
        let ioas = try kernel.ioasAllocate(open[0])
        let table = try kernel.hwptAllocate(open[0], flags: 0, device: id, pageTable: ioas)
        _ = try kernel.vfioAttach(open[1], pageTable: table)
        break
      } catch {
        #expect(error == .inputOutput)
        open.forEach(kernel.close)
        open = []
        #expect(base.isClean)
      }
    }
    #expect(n == 7)
  }

  @Test func swallowedUnmapLeavesTheDeviceItsMemory() throws {
    let rig = try IOMMUFDRig(over: { FaultingKernel($0) })
    let kernel = try #require(rig.kernel as? FaultingKernel)
    try rig.map(at: 0x1000)
    try rig.map(at: 0x2000, offset: 4096)
    try rig.map(at: 0x10_0000, offset: 8192)
    kernel.swallowUnmap(2)
    #expect(try rig.unmap(0x10_0000, 4096) == 4096)
    #expect(try rig.unmap(0x1000, 0x2000) == 8192)
    #expect(kernel.swallowedCount == 1)
    #expect(try rig.edu(0x1000, 8, toMemory: true), "a test for DMA after unmap must fail on this")
    #expect(try rig.unmap(0x1000, 0x2000) == 8192)
    #expect(try !rig.edu(0x1000, 8, toMemory: true))
    rig.close()
  }

  @Test func everyUnmapCanBeSwallowed() throws {
    let rig = try ContainerRig(over: { FaultingKernel($0) })
    let kernel = try #require(rig.kernel as? FaultingKernel)
    kernel.swallowUnmap()
    try rig.map(at: 0x1000)
    try rig.map(at: 0x4000, byteCount: 8192)
    #expect(try rig.unmap(0x1000, 4096) == 4096)
    #expect(try rig.unmap(0, 0, flags: 2) == 8192)
    #expect(try rig.unmap(0, 0, flags: 2) == 0)
    #expect(kernel.swallowedCount == 3)
    kernel.passAll()
    #expect(try rig.unmap(0, 0, flags: 2) == 12288)
    rig.close()
  }

  @Test func wrapsAnything() {
    let kernel = FaultingKernel(FaultingKernel(SimulatedKernel(.vtd)))
    #expect(kernel.name == "simulated" && kernel.isSimulated)
    #expect(kernel.memoryLockLimit() == .max && kernel.hasCapability(14) && kernel.effectiveUser() == 0)
    #expect(kernel.count(of: "memoryLockLimit") == 1)
  }
}
