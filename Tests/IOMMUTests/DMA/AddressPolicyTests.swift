import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Below 4 GiB first, until that fails once.
@Suite struct AddressPolicyTests {
  private static let addresses = ["0000:00:02.0", "0000:00:03.0"]
  private static let fourGiB: UInt64 = 1 << 32

  /// A machine, all of its space below 4 GiB taken when asked for, and a domain with two devices in it.
  private func withDevices(
    _ interface: Interface, full: Bool, addressBits: Int = 64, _ body: (Device, Device) throws -> Void
  ) throws {
    let machine = SimulatedHost(
      devices: [Self.addresses[0]: EduModel(addressBits: addressBits), Self.addresses[1]: EduModel(addressBits: 64)])
    let base = unsafe mmap(nil, 4 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)!
    defer { unsafe munmap(base, 4 << 30) }
    do {
      let first = try Device(Self.addresses[0], on: machine.host, interface: interface)
      let second = try Device(Self.addresses[1], on: machine.host, sharing: first.dma)
      let low = first.dma.usableRanges.intersection([IOVARange(start: IOVA(0), byteCount: Self.fourGiB)!])
      try unsafe taking(full ? low.map(\.self) : [], base, first.dma) { try body(first, second) }
      second.close()
      first.close()
    }
    #expect(machine.isClean)
  }

  /// Calls a function while memory is mapped at some ranges.
  private func taking(
    _ ranges: [IOVARange], _ base: UnsafeMutableRawPointer, _ dma: DMADomain, _ body: () throws -> Void
  ) throws {
    guard let range = ranges.first else { return try body() }
    let memory = unsafe UnsafeRawBufferPointer(start: base, count: Int(range.byteCount))
    let mapping = try unsafe dma.map(unsafe: memory, .toDevice, at: range.start)
    try unsafe taking(Array(ranges.dropFirst()), base, dma, body)
    try mapping.unmap()
  }

  private func address(_ dma: DMADomain) throws -> UInt64 {
    let mapping = try dma.map(try dma.buffer(byteCount: 64), .bidirectional)
    let address = mapping.address.rawValue
    _ = try mapping.unmap()
    return address
  }

  @Test(arguments: Interface.allCases)
  func lowAddressesFirst(_ interface: Interface) throws {
    try withDevices(interface, full: false) { device, _ in
      let dma = device.dma
      #expect(dma.addressPolicy == .sacFirst)
      let first = try address(dma)
      #expect(first == Self.fourGiB - 4096, "the highest below 4 GiB")
      #expect(try dma.allocate(UInt64.self, count: 8).address.rawValue < Self.fourGiB)
      dma.setAddressPolicy(.full)
      #expect(try address(dma) >= 1 << 47, "the highest of all")
      dma.setAddressPolicy(.sacFirst)
      #expect(try address(dma) < Self.fourGiB)
      #expect(dma.statistics.addressPolicyTrips == 0)
    }
  }

  /// A device that has only the space below 4 GiB has no second try, and nothing that could trip.
  @Test(arguments: Interface.allCases)
  func aSmallMaskDoesNotTrip(_ interface: Interface) throws {
    try withDevices(interface, full: true) { device, _ in
      let dma = device.dma, page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      try dma.setMask(.bits(28))
      try unsafe failAll(dma, UnsafeRawBufferPointer(page))
      #expect(dma.addressPolicy == .sacFirst && dma.statistics.addressPolicyTrips == 0)
    }
  }

  /// No room in either space: the first try has failed all the same, whatever asked.
  @Test func aFailureTripsToo() throws {
    try withDevices(.iommufd, full: true) { device, _ in
      let dma = device.dma
      try dma.setMask(.bits(33))
      let base = unsafe mmap(nil, 4 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)!
      defer { unsafe munmap(base, 4 << 30) }
      let high = dma.usableRanges.intersection([IOVARange(start: IOVA(Self.fourGiB), byteCount: Self.fourGiB)!])
      try unsafe taking(high.map(\.self), base, dma) {
        var trips: UInt64 = 0
        try unsafe failAll(dma, UnsafeRawBufferPointer(start: base, count: 4096)) {
          trips += 1
          #expect(dma.addressPolicy == .full && dma.statistics.addressPolicyTrips == trips)
          dma.setAddressPolicy(.sacFirst)
        }
        #expect(trips == 4)
      }
    }
  }

  /// Every way to ask for an address, of which none succeeds; after each of them calls a function.
  private func failAll(_ dma: DMADomain, _ page: UnsafeRawBufferPointer, _ then: () -> Void = {}) throws {
    let ways: [() throws -> Void] = [
      { _ = try dma.map(try dma.buffer(byteCount: 64), .toDevice) },
      { _ = try unsafe dma.map(unsafe: page, .toDevice) },
      { _ = try dma.allocate(UInt64.self, count: 8) },
      {
        var list = ScatterList()
        list.append(try dma.buffer(byteCount: 64))
        _ = try dma.map(list, .toDevice)
      },
    ]
    for way in ways {
      #expect { try way() } throws: { ($0 as? DMAError)?.code == .noSpace }
      then()
    }
  }

  /// One failure, one notice, one count; then from the mask down, and never below again.
  @Test(arguments: Interface.allCases)
  func theFirstFailureIsTheLast(_ interface: Interface) throws {
    try withDevices(interface, full: true) { device, other in
      let dma = device.dma, notices = Mutex<[DMANotice]>([])
      dma.onNotice { notice in notices.withLock { $0.append(notice) } }
      try dma.setMask(.bits(40))
      let failed = dma.statistics.failedMaps
      for _ in 0..<3 { #expect(try address(dma) == (1 << 40) - 4096, "the highest that the device will get") }
      #expect(dma.addressPolicy == .full)
      #expect(dma.statistics.addressPolicyTrips == 1)
      #expect(dma.statistics.failedMaps == failed, "nothing failed for the driver")
      let expected = DMANotice.addressPolicyTripped(device: Self.addresses[0], addressBits: 40)
      #expect(notices.withLock { $0 } == [expected])
      #expect(expected.description == "0000:00:02.0: using 40-bit DMA addresses")
      #expect(other.dma.addressPolicy == .sacFirst, "each device keeps its own")
      #expect(try other.dma.allocate(UInt8.self, count: 1).address.rawValue >= Self.fourGiB)
      #expect(dma.statistics.addressPolicyTrips == 2)
    }
  }

  /// Also by a list, a reservation, by memory of the caller's, and where nothing is free at all.
  @Test(arguments: Interface.allCases, ["list", "reserve", "bulk", "unsafe", "nothing"])
  func eachWayToAnAddressTrips(_ interface: Interface, _ way: String) throws {
    try withDevices(interface, full: true) { device, _ in
      let dma = device.dma
      switch way {
      case "list":
        var list = ScatterList()
        for _ in 0..<3 { list.append(try dma.buffer(byteCount: 64)) }
        #expect(try dma.map(list, .toDevice).address.rawValue >= Self.fourGiB)
      case "reserve":
        let linked = try dma.reserve(byteCount: 4096).sync()
        #expect(linked.address.rawValue >= Self.fourGiB)
      case "unsafe", "bulk":
        let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { unsafe page.deallocate() }
        let memory = UnsafeRawBufferPointer(page)
        let mapping =
          way == "bulk"
          ? try unsafe dma.mapBulk(unsafe: memory, .toDevice)! : try unsafe dma.map(unsafe: memory, .toDevice)
        #expect(mapping.address.rawValue >= Self.fourGiB)
        try mapping.unmap()
      default:
        #expect(throws: DMAError.self) { _ = try dma.allocate(UInt8.self, count: 1 << 48) }
        #expect(dma.addressPolicy == .sacFirst, "no memory is no sign of anything")
        let mapping = try dma.map(try dma.buffer(byteCount: 64), .toDevice)
        #expect(mapping.address.rawValue >= Self.fourGiB)
      }
      #expect(dma.addressPolicy == .full)
    }
  }

  /// A caller who fixes an address above 4 GiB has had no failure.
  @Test func aFixedAddressTripsNothing() throws {
    try withDevices(.iommufd, full: false) { device, _ in
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      try unsafe device.dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice, at: IOVA(1 << 33)).unmap()
      #expect(device.dma.addressPolicy == .sacFirst)
    }
  }

  /// A device that drops the bits above its 36 works below 4 GiB, and fails with the first address after the trip.
  @Test(arguments: Interface.allCases)
  func aDeviceThatDropsBitsFailsAtOnce(_ interface: Interface) throws {
    for full in [false, true] {
      try withDevices(interface, full: full, addressBits: 36) { device, _ in
        let mapping = try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
        #expect(mapping.address.rawValue >> 47 == (full ? 1 : 0), "the highest bit from the first address on")
        let edu = try device.registers(bar: 0)
        edu.store(mapping.address.rawValue, at: 0x80)
        edu.store(UInt64(0x40000), at: 0x88)
        edu.store(UInt64(64), at: 0x90)
        edu.store(UInt64(1), at: 0x98)
        #expect(device.dma.faults.faults.isEmpty == !full, "the transfer goes elsewhere, and is seen")
        _ = try mapping.unmap()
      }
    }
  }
}
