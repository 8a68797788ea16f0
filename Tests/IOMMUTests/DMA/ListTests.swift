import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Scatter lists when the kernel refuses.
@Suite struct ListTests {
  private func list(_ dma: DMADomain, _ count: Int) throws -> ScatterList {
    var list = ScatterList()
    for _ in 0..<count { list.append(try dma.buffer(byteCount: 4096)) }
    return list
  }

  /// Buffers that do not follow each other in memory, so that each takes a kernel call; `between` keeps what does.
  private func apart(_ dma: DMADomain, _ count: Int, _ between: inout ScatterList) throws -> ScatterList {
    var list = ScatterList()
    for _ in 0..<count {
      list.append(try dma.buffer(byteCount: 4096))
      between.append(try dma.buffer(byteCount: 4096))
    }
    return list
  }

  /// A part cannot be mapped, and those before it cannot be unmapped: the device still reaches their memory, so no buffer
  /// may get it again, and nothing its addresses.
  @Test(arguments: Interface.allCases)
  func memoryThatIsStuckIsNotUsedAgain(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
      var between = ScatterList(), parts = try apart(device.dma, 3, &between)
      let memory = (0..<3).map { parts.withBuffer(at: $0) { TranslateTests.start($0) } }
      // The third map and all calls after it: the unmap of the first two among them.
      kernel.failFrom(3, with: .noMemory)
      do throws(DMAError) {
        _ = try device.dma.map(parts, .bidirectional)
        Issue.record("mapped")
      } catch {
        #expect(error.errno == .noMemory && error.operation == "map(list)" && error.device == "0000:00:02.0")
        #expect(error.detail?.contains("could not be unmapped") == true && error.remedy != nil)
      }
      kernel.passAll()
      #expect(device.dma.statistics.leakedBytes == 3 * 4096)
      let others = try list(device.dma, 200)
      let mapped = try device.dma.map(others, .bidirectional)
      var again = try mapped.unmap()
      #expect(kernel.count(of: interface == .iommufd ? "ioasMap" : "vfioMap") < 20, "neighbours go together")
      for index in 0..<200 { #expect(!memory.contains(again.withBuffer(at: index) { TranslateTests.start($0) })) }
      device.close()
    }
  }

  /// One call for all that is in a row, in memory and for the device.
  @Test(arguments: Interface.allCases)
  func neighboursAreMappedByOneCall(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface, translation: .kernel)
      let dma = device.dma
      let mapped = try dma.map(try list(dma, 16), .bidirectional)
      #expect(dma.statistics.systemCalls == 1 && dma.statistics.maps == 16 && dma.statistics.liveMappings == 16)
      #expect(mapped.segmentCount == 1 && mapped.segments[0].address == mapped.address)
      #expect(mapped.segments[0].byteCount == 16 * 4096)
      var parts = try mapped.unmap()
      #expect(dma.statistics.systemCalls == 2 && dma.statistics.unmaps == 16 && dma.statistics.liveBytes == 0)
      // The other way round nothing is in a row.
      var reversed = ScatterList()
      while parts.count > 0 { reversed.append(parts.removeLast()) }
      let starts = (0..<16).map { index in reversed.withBuffer(at: index) { TranslateTests.start($0) } }
      let again = try dma.map(reversed, .bidirectional)
      #expect(dma.statistics.systemCalls == 2 + 16 && again.segmentCount == 1)
      for index in 0..<16 {
        let address = again.address(ofBufferAt: index)
        unsafe #expect(dma.translate(address, byteCount: 4096).map { UInt(bitPattern: $0) } == starts[index])
        unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: starts[index])!, byteCount: 4096) == address)
      }
      _ = try again.unmap()
      #expect(dma.statistics.systemCalls == 2 + 16 + 1)
      device.close()
    }
    #expect(machine.isClean)
  }

  /// The 64 pages of a descriptor, as a receive queue has them: one range under one table of the lowest level, however many
  /// descriptors there are, and one invalidation for each (Rubin and others, "Fast & Safe IO Memory Protection", section 4).
  @Test func aDescriptorsPagesShareATable() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: .iommufd, translation: .process)
      let dma = device.dma
      // One page, and then everything stays mapped, so that the addresses do not come out even by themselves.
      let odd = try dma.reserve(byteCount: 4096).sync()
      let held = UnsafeMutablePointer<MappedList>.allocate(capacity: 20),
        others = UnsafeMutablePointer<LinkedRange>.allocate(capacity: 20)
      var isUnderOne: [Bool] = []
      for round in 0..<20 {
        unsafe (held + round).initialize(to: try dma.map(try list(dma, 64), .fromDevice))
        unsafe (others + round).initialize(to: try dma.reserve(byteCount: 256 << 10).sync())
        for start in unsafe [held[round].address.rawValue, others[round].address.rawValue] {
          isUnderOne.append(start >> 21 == (start + 64 * 4096 - 1) >> 21)
        }
      }
      #expect(isUnderOne == [Bool](repeating: true, count: 40))
      for round in 0..<20 {
        let before = dma.statistics.invalidations
        _ = try unsafe (held + round).move().unmap()
        #expect(dma.statistics.invalidations == before + 1)
      }
      _ = consume odd
      unsafe held.deallocate()
      unsafe others.deinitialize(count: 20)
      unsafe others.deallocate()
      device.close()
    }
    #expect(machine.isClean)
  }

  /// The part of the list that was unmapped is used again, the rest never: its call failed.
  @Test(arguments: Interface.allCases)
  func aLongListGoesInSlices(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel), unmap = interface == .iommufd ? "ioasUnmap" : "vfioUnmap"
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
      let dma = device.dma
      func long() throws -> ScatterList {
        var list = ScatterList()
        for megabytes in [20, 20, 40, 8] { list.append(try dma.buffer(byteCount: megabytes << 20)) }
        return list
      }
      _ = try dma.map(try long(), .toDevice).unmap()
      // 20, 20, 32, 8 and 8 MiB to map; to unmap, the last two fit together.
      #expect(dma.statistics.systemCalls == 5 + 4)
      let mapped = try dma.map(try long(), .toDevice)
      kernel.fail(3, of: unmap, with: .inputOutput)
      do throws(DMAError) {
        _ = try mapped.unmap()
        Issue.record("unmapped")
      } catch { #expect(error.errno == .inputOutput && error.byteCount == 48 << 20) }
      #expect(dma.statistics.leakedBytes == 48 << 20 && dma.statistics.liveMappings == 2)
      #expect(dma.statistics.systemCalls == 9 + 5 + 3)
      device.close()
    }
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }

  /// Memory of the caller's between buffers: its offset in the page stays, and what follows begins a new segment.
  @Test(arguments: Interface.allCases)
  func memoryOfTheCallersInAList(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 3 * 4096, alignment: 4096)
    defer { unsafe page.deallocate() }
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface, translation: .kernel)
      let dma = device.dma
      var refused = ScatterList()
      unsafe refused.append(unsafe: UnsafeRawBufferPointer(rebasing: page[100..<4096]))
      do throws(DMAError) {
        _ = try dma.map(refused, .toDevice)
        Issue.record("mapped")
      } catch { #expect(error.code == .unaligned && error.operation == "map(list)" && error.device == "0000:00:02.0") }
      var parts = try list(dma, 1)
      unsafe parts.append(unsafe: UnsafeRawBufferPointer(rebasing: page[100..<8192]), widening: true)
      unsafe parts.append(unsafe: UnsafeRawBufferPointer(rebasing: page[8192..<12288]))
      parts.append(try dma.buffer(byteCount: 10))
      let mapped = try dma.map(parts, .toDevice), start = mapped.address
      #expect(mapped.byteCount == 5 * 4096 && mapped.count == 4)
      let segments = mapped.segments.map { [Int($0.address.rawValue - start.rawValue), $0.byteCount] }
      let wanted: [[Int]] = [[0, 4096], [4196, 12198]]
      #expect(segments == wanted)
      let addresses = (0..<4).map { Int(mapped.address(ofBufferAt: $0).rawValue - start.rawValue) }
      let places: [Int] = [0, 4196, 12288, 16384]
      #expect(addresses == places)
      unsafe #expect(dma.translate(IOVA(start.rawValue + 4096 + 100)) == page.baseAddress! + 100)
      let back = try mapped.unmap()
      #expect(back.count == 4 && back.byteCount(at: 1) == 8092)
      device.close()
    }
    #expect(machine.isClean)
  }

  @Test func buffersOfAnotherDomainAreRefused() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()])
    do {
      let first = try Device("0000:00:02.0", on: machine.host), second = try Device("0000:00:03.0", on: machine.host)
      var parts = try list(first.dma, 2)
      parts.append(try second.dma.buffer(byteCount: 1))
      do throws(DMAError) {
        _ = try first.dma.map(parts, .toDevice)
        Issue.record("mapped")
      } catch { #expect(error.code == .invalidArgument && error.device == "0000:00:02.0") }
      #expect(first.dma.statistics.maps == 0)
      first.close()
      second.close()
    }
    #expect(machine.isClean)
  }
}
