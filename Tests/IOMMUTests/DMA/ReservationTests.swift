import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The two-step form: addresses first, memory later.
@Suite struct ReservationTests {
  private func withDomain(_ interface: Interface, _ body: (FaultingKernel, DMADomain) throws -> Void) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface)
      try body(kernel, device.dma)
      #expect(device.dma.statistics.liveMappings == 0 && device.dma.statistics.liveBytes == 0)
      #expect(device.dma.statistics.leakedBytes == 0)
      device.close()
    }
    #expect(machine.isClean)
  }

  private func code(_ body: () throws(DMAError) -> Void) -> DMAError.Code? {
    do throws(DMAError) { try body() } catch {
      #expect(error.device == "0000:00:02.0" && error.detail != nil, "\(error)")
      return error.code
    }
    return nil
  }

  /// Many links, found by address and by memory, and unlinked by one call where they are in a row.
  @Test(arguments: Interface.allCases)
  func linksAreMappedInPlace(_ interface: Interface) throws {
    try withDomain(interface) { _, dma in
      var reservation = try dma.reserve(byteCount: 10 * 4096 - 1)
      #expect(reservation.byteCount == 10 * 4096 && dma.statistics.systemCalls == 0)
      var starts: [Int: UInt] = [:]
      // 2 and 3, 5, 7 and 8, not in that order.
      for page in [7, 2, 5, 8, 3] {
        var buffer = try dma.buffer(byteCount: 4000)
        buffer.store(page)
        starts[page] = TranslateTests.start(buffer)
        try reservation.link(buffer, at: page * 4096, .bidirectional)
      }
      #expect(dma.statistics.systemCalls == 5 && dma.statistics.liveMappings == 5)
      let linked = try reservation.sync(), base = linked.address.rawValue
      #expect(linked.byteCount == 10 * 4096)
      for page in 0..<10 {
        let address = IOVA(base + UInt64(page) * 4096)
        unsafe #expect(dma.translate(address).map { UInt(bitPattern: $0) } == starts[page])
        guard let start = starts[page] else { continue }
        unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: start)!, byteCount: 4096) == address)
      }
      let buffers = try linked.destroy()
      #expect(dma.statistics.systemCalls == 5 + 3, "three rows")
      var list = consume buffers
      #expect(
        (0..<list.count).map { index in list.withBuffer(at: index) { $0.load(as: Int.self) } } == [2, 3, 5, 7, 8])
    }
  }

  /// Nobody gets a reserved address, before, between and after links; all of it comes back in the end.
  @Test(arguments: Interface.allCases)
  func addressesStayReserved(_ interface: Interface) throws {
    try withDomain(interface) { _, dma in
      try dma.setMask(.bits(16))
      var free = ScatterList()
      func room() throws -> Int {
        var held: [UInt64] = []
        var mappings: [Box] = []
        while let mapping = try? dma.map(try dma.buffer(byteCount: 4096), .toDevice) {
          held.append(mapping.address.rawValue)
          mappings.append(Box(mapping))
        }
        return held.count
      }
      let all = try room()
      var reservation = try dma.reserve(byteCount: 4 * 4096)
      #expect(try room() == all - 4)
      for page in [1, 3] { try reservation.link(try dma.buffer(byteCount: 1), at: page * 4096, .toDevice) }
      #expect(try room() == all - 4)
      free = try reservation.unlink(4096..<8192)
      #expect(free.count == 1)
      #expect(try room() == all - 4)
      for page in [0, 1, 2] { try reservation.link(try dma.buffer(byteCount: 1), at: page * 4096, .toDevice) }
      let calls = dma.statistics.systemCalls
      free = try reservation.unlink(0..<4 * 4096)
      #expect(free.count == 4 && dma.statistics.systemCalls == calls + 1)
      #expect(try room() == all - 4)
      try reservation.link(try dma.buffer(byteCount: 2 * 4096), at: 2 * 4096, .toDevice)
      let linked = try reservation.sync()
      #expect(try room() == all - 4)
      _ = consume linked
      #expect(dma.statistics.liveMappings == 0)
      #expect(try room() == all)
    }
  }

  private final class Box {
    let mapping: Mapping
    init(_ mapping: consuming Mapping) { self.mapping = mapping }
  }

  @Test(arguments: Interface.allCases)
  func linksThatCannotBe(_ interface: Interface) throws {
    try withDomain(interface) { _, dma in
      let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 3 * 4096, alignment: 4096)
      defer { unsafe memory.deallocate() }
      var reservation = try dma.reserve(byteCount: 4 * 4096)
      try reservation.link(try dma.buffer(byteCount: 8000), at: 4096, .toDevice)
      let calls = dma.statistics.systemCalls
      func refused(_ offset: Int, _ byteCount: Int = 4096) throws -> DMAError.Code? {
        let buffer = try dma.buffer(byteCount: byteCount)
        do throws(DMAError) { try reservation.link(buffer, at: offset, .toDevice) } catch {
          #expect(error.operation == "link" && error.device == "0000:00:02.0" && error.detail != nil)
          return error.code
        }
        return nil
      }
      #expect(try refused(-4096) == .unaligned)
      #expect(try refused(1) == .unaligned)
      #expect(try refused(4 * 4096) == .outsideAperture)
      #expect(try refused(3 * 4096, 4097) == .outsideAperture)
      #expect(try refused(Int.max & ~4095) == .outsideAperture)
      #expect(try refused(0, 4097) == .overlap)
      #expect(try refused(2 * 4096) == .overlap)
      #expect(try refused(4096) == .overlap)
      let inMidPage = unsafe UnsafeRawBufferPointer(rebasing: memory[8..<4096])
      #expect(
        code { () throws(DMAError) in try unsafe reservation.link(unsafe: inMidPage, at: 0, .toDevice) } == .unaligned)
      #expect(
        code { () throws(DMAError) in
          try unsafe reservation.link(unsafe: inMidPage, at: 3 * 4096, .toDevice, widening: true)
        } == .unaligned)
      for cut in [4096..<8192, 8192..<4 * 4096, 0..<4097, 5000..<5001] {
        #expect(code { () throws(DMAError) in _ = try reservation.unlink(cut) } == .invalidArgument)
      }
      #expect(dma.statistics.systemCalls == calls && dma.statistics.failedMaps == 0)
      let none = try reservation.unlink(0..<4096)
      #expect(none.count == 0 && dma.statistics.systemCalls == calls)
      #expect(try refused(0) == nil)
      #expect(try refused(3 * 4096) == nil)
      for length in [Int.min, -1, 0, .max / 4, .max] {
        let error = #expect(throws: DMAError.self) { _ = try dma.reserve(byteCount: length) }
        #expect([.empty, .overflow, .noSpace].contains(error?.code), "\(length)")
      }
    }
  }

  /// Start padding at offset 0 only, where the address tells it; the end may lie in mid page anywhere.
  @Test(arguments: Interface.allCases)
  func memoryInMidPage(_ interface: Interface) throws {
    try withDomain(interface) { _, dma in
      let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 3 * 4096, alignment: 4096)
      defer { unsafe memory.deallocate() }
      var reservation = try dma.reserve(byteCount: 3 * 4096, alignment: PageSize(shift: 16))
      try unsafe reservation.link(
        unsafe: UnsafeRawBufferPointer(rebasing: memory[4096..<8292]), at: 4096, .toDevice, widening: true)
      var linked = try reservation.sync()
      #expect(linked.address.rawValue % 65536 == 0)
      reservation = linked.reopen()
      try unsafe reservation.link(
        unsafe: UnsafeRawBufferPointer(rebasing: memory[100..<4096]), at: 0, .toDevice, widening: true)
      linked = try reservation.sync()
      #expect(linked.address.rawValue % 65536 == 100)
      unsafe #expect(dma.translate(linked.address, byteCount: 3996) == memory.baseAddress! + 100)
      let back = try linked.unlink(0..<4096)
      let live = dma.statistics.liveMappings
      #expect(back.count == 0 && live == 1 && linked.address.rawValue % 65536 == 0)
    }
  }

  /// The kernel refuses a link, at once or in its second area: the reservation is as before.
  @Test(arguments: Interface.allCases, [1, 2])
  func aLinkThatFails(_ interface: Interface, _ number: Int) throws {
    try withDomain(interface) { kernel, dma in
      var reservation = try dma.reserve(byteCount: 48 << 20)
      try reservation.link(try dma.buffer(byteCount: 1), at: 0, .toDevice)
      kernel.fail(number, of: interface == .iommufd ? "ioasMap" : "vfioMap", with: .noDevice)
      let long = try dma.buffer(byteCount: 40 << 20)
      do throws(DMAError) {
        try reservation.link(long, at: 4096, .toDevice)
        Issue.record("linked")
      } catch { #expect(error.code == .gone && error.errno == .noDevice && error.operation == "link") }
      #expect(dma.statistics.liveMappings == 1 && dma.statistics.failedMaps == 1)
      try reservation.link(try dma.buffer(byteCount: 40 << 20), at: 4096, .toDevice)
      let calls = dma.statistics.systemCalls
      let list = try reservation.destroy()
      // A page and 32 MiB are more than an area.
      #expect(list.count == 2 && dma.statistics.systemCalls == calls + 3)
    }
  }

  /// The kernel does not unlink: that memory and its addresses stay out of use, and the rest goes on.
  @Test(arguments: Interface.allCases)
  func anUnlinkThatFails(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel), unmap = interface == .iommufd ? "ioasUnmap" : "vfioUnmap"
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface), dma = device.dma
      var reservation = try dma.reserve(byteCount: 8 * 4096)
      for page in [0, 2, 4] { try reservation.link(try dma.buffer(byteCount: 4096), at: page * 4096, .toDevice) }
      kernel.fail(2, of: unmap, with: .inputOutput)
      do throws(DMAError) {
        _ = try reservation.unlink(0..<3 * 4096)
        Issue.record("unlinked")
      } catch { #expect(error.errno == .inputOutput && error.operation == "unlink" && error.remedy != nil) }
      #expect(dma.statistics.leakedBytes == 4096 && dma.statistics.liveMappings == 2)
      do throws(DMAError) {
        try reservation.link(try dma.buffer(byteCount: 4096), at: 2 * 4096, .toDevice)
        Issue.record("linked over memory that is still mapped")
      } catch { #expect(error.code == .noSpace) }
      try reservation.link(try dma.buffer(byteCount: 4096), at: 0, .toDevice)
      let linked = try reservation.sync(), stuck = IOVA(linked.address.rawValue + 2 * 4096)
      let list = try linked.destroy()
      #expect(list.count == 2 && dma.statistics.liveMappings == 1)
      unsafe #expect(dma.translate(stuck) != nil)
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      let memory = UnsafeRawBufferPointer(page)
      let overlap = #expect(throws: DMAError.self) { _ = try unsafe dma.map(unsafe: memory, .toDevice, at: stuck) }
      #expect(overlap?.code == .overlap)
      try unsafe dma.map(unsafe: memory, .toDevice, at: IOVA(stuck.rawValue - 4096)).unmap()
      device.close()
    }
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }

  /// It outlives its device and its domain; what was linked is out of reach then.
  @Test(arguments: Interface.allCases)
  func closedWhileLinked(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
      var reservation = try device.dma.reserve(byteCount: 8192)
      try reservation.link(try device.dma.buffer(byteCount: 10), at: 4096, .toDevice)
      var other = try device.dma.reserve(byteCount: 8192)
      let buffer = try device.dma.buffer(byteCount: 10)
      device.close()
      do throws(DMAError) {
        try other.link(buffer, at: 0, .toDevice)
        Issue.record("linked")
      } catch { #expect(error.code == .closed && error.operation == "link") }
      do throws(DMAError) {
        _ = try other.sync()
        Issue.record("synced")
      } catch { #expect(error.code == .closed && error.operation == "sync") }
      #expect(code { () throws(DMAError) in _ = try device.dma.reserve(byteCount: 1) } == .closed)
      let list = try reservation.destroy()
      #expect(list.count == 1)
    }
    #expect(machine.isClean)
  }

  @Test func constraintsHoldForReservations() throws {
    try withDomain(.iommufd) { _, dma in
      let boundary = PageSize(shift: 16)
      try dma.setConstraints(DMAConstraints(boundary: boundary, alignment: PageSize(shift: 13)))
      let spacer = try dma.map(try dma.buffer(byteCount: 5 * 4096), .toDevice)
      for pages in [1, 9, 16, 20] {
        let linked = try dma.reserve(byteCount: pages * 4096, alignment: .fourKiB).sync()
        let start = linked.address.rawValue
        #expect(start % 8192 == 0)
        #expect(pages > 16 ? start % 65536 == 0 : start >> 16 == (start + UInt64(pages * 4096 - 1)) >> 16)
      }
      _ = try spacer.unmap()
    }
  }
}
