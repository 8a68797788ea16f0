import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Translation in both directions tells what is mapped, and nothing else.
@Suite struct TranslateTests {
  /// Where a buffer's memory begins.
  static func start(_ buffer: borrowing DMABuffer) -> UInt {
    unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
  }

  /// The arena grows after the first question, which makes the index.
  @Test(arguments: Interface.allCases)
  func arenasThatComeLaterAreFound(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel()])
    let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
    let dma = device.dma
    let first = try dma.allocate(UInt64.self, count: 4)
    unsafe #expect(dma.translate(first.unsafeBaseAddress) == first.address)
    let second = try dma.allocate(UInt8.self, count: 1 << 20)
    unsafe #expect(dma.translate(second.unsafeBaseAddress, byteCount: 1 << 20) == second.address)
    unsafe #expect(dma.translate(second.unsafeBaseAddress + 5000) == second.address(of: 5000))
    unsafe #expect(dma.translate(second.address(of: 5000)) == second.unsafeBaseAddress + 5000)
    unsafe #expect(dma.translate(first.unsafeBaseAddress) == first.address)
    device.close()
    _ = (first.count, second.count)
  }

  /// Another thread asks for the first time while the kernel is busy with a map that it then refuses.
  @Test(arguments: [false, true])
  func aMapThatFailsIsNotFound(_ isList: Bool) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: .iommufd, translation: .kernel)
      let dma = device.dma
      let buffer = try dma.buffer(byteCount: 4096)
      let start = Self.start(buffer)
      let pointer = unsafe UnsafeRawPointer(bitPattern: start)!
      kernel.interject(before: "ioasMap") { _ = unsafe dma.translate(UnsafeRawPointer(bitPattern: start)!) }
      kernel.fail(1, of: "ioasMap", with: .noMemory)
      if isList {
        var list = ScatterList()
        list.append(buffer)
        do { _ = try dma.map(list, .toDevice) } catch { #expect(error.errno == .noMemory) }
      } else {
        do { _ = try dma.map(buffer, .toDevice) } catch { #expect(error.errno == .noMemory) }
      }
      #expect(kernel.hasFailed)
      unsafe #expect(dma.translate(pointer) == nil)
      device.close()
    }
    #expect(machine.isClean)
  }

  /// What was found last is asked for its mapping each time: of one that has ended, or whose address another memory has now,
  /// nothing is left.
  @Test func whatWasFoundLastMayHaveEnded() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: .iommufd)
      let dma = device.dma
      var buffer = try dma.buffer(byteCount: 8192), other = try dma.buffer(byteCount: 8192)
      let (start, otherStart) = (Self.start(buffer), Self.start(other))
      func find(_ start: UInt, _ byteCount: Int = 1) -> IOVA? {
        unsafe dma.translate(UnsafeRawPointer(bitPattern: start)!, byteCount: byteCount)
      }
      for _ in 0..<3 {
        let mapping = try dma.map(buffer, .toDevice)
        for _ in 0..<2 {
          #expect(find(start) == mapping.address)
          #expect(find(start + 4000, 4192) == mapping.address + 4000)
          #expect(find(start + 4000, 4193) == nil)
          #expect(find(otherStart) == nil)
        }
        let address = mapping.address
        buffer = try mapping.unmap()
        #expect(find(start) == nil)
        let second = try dma.map(other, .toDevice)
        #expect(second.address == address, "so that the test is one")
        #expect(find(start) == nil)
        #expect(find(otherStart) == second.address)
        other = try second.unmap()
      }
      device.close()
    }
    #expect(machine.isClean)
  }
}
