import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Numbers that make no sense are refused with an error; none stops the process, and none leaves anything behind.
@Suite struct HostileArgumentTests {
  static let lengths = [Int.min, -4096, -1, 0, 1 << 50, .max / 4, .max - 4095, .max]

  private func withDevice(_ interface: Interface, _ body: (Device) throws -> Void) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
      try body(device)
      #expect(device.dma.statistics.liveMappings == 0 && device.dma.statistics.leakedBytes == 0)
      device.close()
    }
    #expect(machine.isClean)
  }

  @Test(arguments: Interface.allCases)
  func lengthsOfMemory(_ interface: Interface) throws {
    try withDevice(interface) { device in
      for length in Self.lengths {
        do throws(DMAError) {
          _ = try device.dma.buffer(byteCount: length)
          Issue.record("a buffer of \(length) bytes")
        } catch {
          #expect([.empty, .overflow, .outOfMemory].contains(error.code), "\(error)")
          #expect(error.device == "0000:00:02.0")
        }
        do throws(DMAError) {
          _ = try device.dma.allocate(UInt64.self, count: length)
          Issue.record("an array of \(length) elements")
        } catch {
          #expect([.empty, .overflow, .outOfMemory, .noSpace].contains(error.code), "\(error)")
          #expect(error.device == "0000:00:02.0")
        }
        let pointer = unsafe UnsafeRawPointer(bitPattern: 4096)!
        unsafe #expect(device.dma.translate(IOVA(.max), byteCount: length) == nil)
        unsafe #expect(device.dma.translate(pointer, byteCount: length) == nil)
      }
    }
  }

  @Test(arguments: Interface.allCases, [false, true])
  func memoryThatIsNone(_ interface: Interface, _ widening: Bool) throws {
    try withDevice(interface) { device in
      for start in [1, 8, 4095, 4096, UInt.max >> 1, .max - 4096, .max - 4095, .max - 1, .max] {
        for length in [1, 4095, 4096, 1 << 40, Int.max - 4095, Int.max] {
          let memory = unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: start), count: length)
          for address in [nil, IOVA(0), IOVA(1), IOVA(0x10_0000), IOVA(0 &- 4096), IOVA(.max)] {
            #expect(throws: DMAError.self, "\(start) \(length) \(String(describing: address))") {
              _ = try unsafe device.dma.map(unsafe: memory, .bidirectional, at: address, widening: widening)
            }
          }
        }
      }
    }
  }

  @Test func addressesAtTheEnds() throws {
    try withDevice(.iommufd) { device in
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
      defer { unsafe page.deallocate() }
      func map(_ address: UInt64, _ count: Int = 4096) throws(DMAError) -> UnsafeMapping {
        try unsafe device.dma.map(
          unsafe: UnsafeRawBufferPointer(rebasing: page[0..<count]), .toDevice, at: IOVA(address))
      }
      func refusal(_ address: UInt64, _ count: Int = 4096) -> DMAError.Code? {
        do throws(DMAError) { _ = try map(address, count) } catch { return error.code }
        return nil
      }
      let last = device.dma.usableRanges.last!.last.rawValue
      try map(last - 4095).unmap()
      #expect(refusal(last - 4095, 8192) == .outsideAperture)
      #expect(refusal(last + 1) == .outsideAperture)
      #expect(refusal(last - 4094) == .unaligned)
      #expect(refusal(0) == .outsideAperture)
      #expect(refusal(.max - 4095) == .outsideAperture)
      #expect(refusal(.max - 4095, 8192) == .overflow)
      try device.dma.setMask(.bits(28))
      try map(0xfff_f000).unmap()
      #expect(refusal(0xfff_f000, 8192) == .outsideMask)
      #expect(refusal(0x1000_0000) == .outsideMask)
      #expect(try device.dma.map(device.dma.buffer(byteCount: 1), .toDevice).address.rawValue < 1 << 28)
    }
  }

  @Test func registersAndInterruptsThatAreNone() throws {
    try withDevice(.iommufd) { device in
      for number in [Int.min, -1, 1, 5, 6, 7, 1 << 32, .max] {
        #expect(throws: DMAError.self) { _ = try device.registers(bar: number) }
        for kind in Interrupt.Kind.allCases where number != 1 || device.interruptCount(kind) < 2 {
          #expect(throws: DMAError.self) { _ = try device.interrupt(number, kind) }
        }
      }
      for offset in [Int.min, -1, 1, 2, 4095, 4096, .max] {
        #expect(throws: DMAError.self) { _ = try device.config.load(at: offset, as: UInt32.self) }
        #expect(throws: DMAError.self) { try device.config.store(UInt32(0), at: offset) }
      }
    }
  }
}
