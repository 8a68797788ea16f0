import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Devices that share a domain.
@Suite struct SharingTests {
  private static let devices = ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()]

  /// Descriptors of one machine mean nothing on another, or something else.
  @Test func aDomainOfAnotherMachineIsRefused() throws {
    let first = SimulatedHost(devices: Self.devices), second = SimulatedHost(devices: Self.devices)
    do {
      let device = try Device("0000:00:02.0", on: first.host)
      do throws(DMAError) {
        _ = try Device("0000:00:03.0", on: second.host, sharing: device.dma)
        Issue.record("opened")
      } catch { #expect(error.code == .invalidArgument && error.remedy != nil) }
      device.close()
    }
    #expect(first.isClean && second.isClean)
  }

  /// Addresses that only wait for a flush are in nobody's way.
  @Test(arguments: Interface.allCases)
  func whatWaitsMakesRoom(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: Self.devices)
    let first = try Device("0000:00:02.0", on: machine.host, interface: interface), dma = first.dma
    try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
    _ = try dma.map(try dma.buffer(byteCount: 64), .toDevice).unmap()
    #expect(dma.statistics.queuedBytes == 4096)
    let second = try Device("0000:00:03.0", on: machine.host, sharing: dma)
    #expect(dma.statistics.queuedBytes == 0)
    second.close()
    first.close()
  }

  /// The last device leaves while another is on its way in: the domain goes on for it, or it is told.
  @Test(arguments: Interface.allCases, ["vfioDeviceInfo", "vfioInterruptInfo", "createEvent"])
  func joiningWhileTheLastLeaves(_ interface: Interface, _ moment: String) throws {
    let machine = SimulatedHost(devices: Self.devices)
    let kernel = FaultingKernel(machine.kernel)
    do {
      let host = Host(kernel: kernel)
      let first = try Device("0000:00:02.0", on: host, interface: interface)
      let dma = first.dma
      kernel.interject(before: moment) { first.close() }
      let second = try Device("0000:00:03.0", on: host, sharing: dma)
      #expect(first.isClosed && !dma.isClosed)
      let mapping = try second.dma.map(try second.dma.buffer(byteCount: 64), .toDevice)
      _ = try mapping.unmap()
      second.close()
      #expect(dma.isClosed)
      #expect(throws: DMAError.self) { _ = try Device("0000:00:03.0", on: host, sharing: dma) }
    }
    #expect(machine.isClean)
  }

  /// Whose address was released last does not matter to a device that drives fewer bits.
  @Test(arguments: Interface.allCases)
  func eachDeviceKeepsToItsMask(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: Self.devices)
    do {
      let wide = try Device("0000:00:02.0", on: machine.host, interface: interface)
      wide.dma.setAddressPolicy(.full)
      let narrow = try Device("0000:00:03.0", on: machine.host, sharing: wide.dma)
      try narrow.dma.setMask(.bits(28))
      for _ in 0..<3 {
        for (device, bits) in [(wide, 48), (narrow, 28)] {
          for _ in 0..<2 {
            let mapping = try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
            let address = mapping.address.rawValue
            #expect(address >> UInt64(bits - 1) == 1, "the highest page of \(bits) bits")
            _ = try mapping.unmap()
          }
        }
      }
      try wide.dma.setMask(.bits(28))
      let mapping = try wide.dma.map(try wide.dma.buffer(byteCount: 64), .toDevice), address = mapping.address.rawValue
      #expect(address < 1 << 28)
      narrow.close()
      wide.close()
    }
    #expect(machine.isClean)
  }

  /// Two devices of one group may reach each other's BARs; one that is alone reaches none but through the IOMMU.
  static func machineWithPeers() -> SimulatedHost {
    var machine = SimulatedMachine.vtd
    // The small BAR leaves a gap before the large one: two windows.
    for (address, byteCount) in [("0000:00:03.0", 4096), ("0000:00:04.0", 1 << 20)] {
      var device = SimulatedDevice(address, ScratchModel(byteCount: byteCount))
      device.group = 40
      machine.devices.append(device)
    }
    return SimulatedHost(machine, devices: ["0000:00:02.0": EduModel(addressBits: 64)])
  }

  /// What a device cannot reach goes for all, and stays away when it has left.
  @Test(arguments: Interface.allCases)
  func aDeviceThatReachesLessNarrowsTheDomain(_ interface: Interface) throws {
    let machine = Self.machineWithPeers()
    do {
      let first = try Device("0000:00:02.0", on: machine.host, interface: interface), dma = first.dma
      let before = dma.usableRanges
      let second = try Device("0000:00:03.0", on: machine.host, sharing: dma)
      let after = dma.usableRanges, lost = before.subtracting(after)
      #expect(!lost.isEmpty && after.subtracting(before).isEmpty && second.dma.usableRanges == after)
      second.close()
      #expect(dma.usableRanges == after)
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      for range in lost {
        let error = #expect(throws: DMAError.self) {
          _ = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice, at: range.start)
        }
        #expect(error?.code == .reserved)
      }
      // Again, with nothing left to narrow.
      let third = try Device("0000:00:03.0", on: machine.host, sharing: dma)
      #expect(dma.usableRanges == after)
      third.close()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// A mapping is where the new device does not reach: it is refused, and the domain is as it was.
  @Test(arguments: Interface.allCases)
  func aDeviceThatCannotReachAMappingIsRefused(_ interface: Interface) throws {
    let machine = Self.machineWithPeers()
    do {
      let first = try Device("0000:00:02.0", on: machine.host, interface: interface), dma = first.dma
      let before = dma.usableRanges
      let resources = try machine.host.peerWindows(of: PCIAddress("0000:00:03.0")!).ranges
      #expect(resources.count > 1)
      // The highest, so that the others are reserved first, and given back.
      let window = try #require(resources.last)
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      let memory = UnsafeRawBufferPointer(page)
      let mapping = try unsafe dma.map(unsafe: memory, .toDevice, at: window.start)
      let error = #expect(throws: DMAError.self) { _ = try Device("0000:00:03.0", on: machine.host, sharing: dma) }
      #expect(error?.code == .reserved && error?.device == "0000:00:03.0")
      #expect(dma.usableRanges == before)
      try mapping.unmap()
      for range in resources {
        try unsafe dma.map(unsafe: memory, .toDevice, at: range.start).unmap()
      }
      try Device("0000:00:03.0", on: machine.host, sharing: dma).close()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// An address that was mapped there and is kept for the next map is in nobody's way.
  @Test(arguments: Interface.allCases)
  func aCachedAddressMakesRoom(_ interface: Interface) throws {
    let machine = Self.machineWithPeers()
    do {
      let first = try Device("0000:00:02.0", on: machine.host, interface: interface), dma = first.dma
      let window = try #require(try machine.host.peerWindows(of: PCIAddress("0000:00:03.0")!).ranges.last)
      let above = IOVARange(start: window.last + 1, last: IOVA(1 << 32 - 1))!
      try Self.reserving(dma.usableRanges.intersection([above]).map(\.self), dma) {
        #expect(window.contains(try LazyTests.mapAndUnmap(dma)), "the highest that is left below 4 GiB")
        try Device("0000:00:03.0", on: machine.host, sharing: dma).close()
        #expect(!window.contains(try LazyTests.mapAndUnmap(dma)))
      }
      first.close()
    }
    #expect(machine.isClean)
  }

  /// Calls a function while the highest ranges are taken.
  private static func reserving(_ ranges: [IOVARange], _ dma: DMADomain, _ body: () throws -> Void) throws {
    guard let range = ranges.last else { return try body() }
    let reservation = try dma.reserve(byteCount: Int(range.byteCount), alignment: .fourKiB)
    try reserving(Array(ranges.dropLast()), dma, body)
    _ = try reservation.destroy()
  }
}
