import AddressSpace
import IOMMU
import Synchronization

/// The two-step form: addresses first, memory later.
extension Cases {
  static let reservations: [ConformanceCase] = [
    ConformanceCase(.conformance, "reserve/rows") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      var reservation = try dma.reserve(byteCount: 8 * 4096)
      for page in [6, 1, 2, 5, 7] {
        var buffer = try dma.buffer(byteCount: 4096)
        buffer.store(page)
        try reservation.link(buffer, at: page * 4096, .bidirectional)
      }
      let linked = try reservation.sync()
      try expectEqual(dma.statistics.systemCalls, environment.calls(5, process: 0), "system calls of five links")
      var list = try linked.destroy()
      try expectEqual(
        dma.statistics.systemCalls, environment.calls(7, process: 2), "system calls after two rows were unlinked")
      let order = (0..<list.count).map { index in list.withBuffer(at: index) { $0.load(as: Int.self) } }
      try expectEqual(order, [1, 2, 5, 6, 7], "the buffers that came back")
      try expectEqual(dma.statistics.liveBytes, 0, "live bytes")
    },
    ConformanceCase(.conformance, "reserve/unlink-keeps") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      var reservation = try dma.reserve(byteCount: 3 * 4096)
      try reservation.link(try dma.buffer(byteCount: 4096), at: 0, .toDevice)
      try unsafe reservation.link(unsafe: memory.buffer, at: 4096, .toDevice)
      var linked = try reservation.sync()
      let middle = IOVA(linked.address.rawValue + 4096)
      let none = try linked.unlink(4096..<8192)
      try expectEqual(none.count, 0, "buffers where the caller's memory was")
      try unsafe expect(dma.translate(middle) == nil, "\(middle) leads somewhere after its unlink")
      try expectCode(.reserved, what: "a map at a reserved address") { () throws(DMAError) in
        _ = try unsafe dma.map(unsafe: memory.buffer, .toDevice, at: middle)
      }
      reservation = linked.reopen()
      try unsafe reservation.link(unsafe: memory.buffer, at: 4096, .bidirectional)
      let list = try reservation.destroy()
      try expectEqual(list.count, 1, "buffers that came back")
      try unsafe dma.map(unsafe: memory.buffer, .toDevice, at: middle).unmap()
    },
    ConformanceCase(.conformance, "reserve/dropped") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      do {
        var reservation = try dma.reserve(byteCount: 1 << 20, alignment: PageSize(shift: 20))
        try reservation.link(try dma.buffer(byteCount: 4096), at: 4096, .toDevice)
        let linked = try reservation.sync()
        try expectEqual(linked.address.rawValue % (1 << 20), 0, "where the range begins in its MiB")
      }
      try expectEqual(dma.statistics.liveMappings, 0, "live mappings")
    },
    ConformanceCase(.conformance, "reserve/errors") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      var reservation = try dma.reserve(byteCount: 8192)
      for (offset, code) in [(1, DMAError.Code.unaligned), (8192, .outsideAperture), (-4096, .unaligned)] {
        let buffer = try dma.buffer(byteCount: 64)
        do throws(DMAError) {
          try reservation.link(buffer, at: offset, .toDevice)
          throw DMAError(.system, "linked at \(offset)")
        } catch { try expectEqual(error.code, code, "a link at \(offset)") }
      }
      try reservation.link(try dma.buffer(byteCount: 8192), at: 0, .toDevice)
      do throws(DMAError) {
        _ = try reservation.unlink(0..<4096)
        throw DMAError(.system, "half a link was unlinked")
      } catch { try expectEqual(error.code, .invalidArgument, "half a link") }
      let list = try reservation.destroy()
      try expectEqual(list.count, 1, "buffers that came back")
    },
  ]

  /// What the device sees of lists and reservations.
  static let linked: [ConformanceCase] = [
    ConformanceCase(.dma, "list/joined-data") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let dma = driver.device.dma
      var list = try buffers(dma, [4096, 100])
      list.withBuffer(at: 0) { $0.store(UInt64(0x11), at: 4088) }
      list.withBuffer(at: 1) { $0.store(UInt64(0x22), at: 0) }
      let mapped = try dma.map(list, .bidirectional)
      try expectEqual(mapped.segmentCount, 1, "segments")
      // Over the end of the first buffer, in one transfer.
      try driver.load(IOVA(mapped.address.rawValue + 4088), byteCount: 16)
      try driver.store(IOVA(mapped.address(ofBufferAt: 1).rawValue + 16), byteCount: 16)
      list = try mapped.unmap()
      let found = list.withBuffer(at: 1) { [$0.load(at: 16, as: UInt64.self), $0.load(at: 24, as: UInt64.self)] }
      try expectEqual(found, [0x11, 0x22], "what went through the device")
    },
    ConformanceCase(.dma, "reserve/data") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let dma = driver.device.dma
      var reservation = try dma.reserve(byteCount: 3 * 4096)
      var source = try dma.buffer(byteCount: 4096)
      source.store(UInt64(0xabcd), at: 4088)
      try reservation.link(source, at: 0, .toDevice)
      try reservation.link(try dma.buffer(byteCount: 4096), at: 4096, .bidirectional)
      let linked = try reservation.sync(), start = linked.address.rawValue
      try driver.load(IOVA(start + 4088), byteCount: 8)
      try driver.store(IOVA(start + 4096), byteCount: 8)
      var list = try linked.destroy()
      try expectEqual(
        list.withBuffer(at: 1) { $0.load(as: UInt64.self) }, 0xabcd, "what went through the device")
    },
    ConformanceCase(.dma, "reach/after-unlink") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let dma = driver.device.dma
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      memory.fill(0x11)
      var reservation = try dma.reserve(byteCount: 8192)
      for page in [0, 4096] {
        let part = unsafe UnsafeRawBufferPointer(rebasing: memory.buffer[page..<page + 4096])
        try unsafe reservation.link(unsafe: part, at: page, .bidirectional)
      }
      var linked = try reservation.sync()
      let address = linked.address
      // Through the page once before, so that the IOMMU's cache has it.
      try driver.load(address, byteCount: 64)
      memory.fill(0x22)
      _ = try linked.unlink(0..<4096)
      try driver.store(address, byteCount: 64)
      try expectEqual(memory.bytes(0..<64), [UInt8](repeating: 0x22, count: 64), "memory after its unlink")
      // The other link goes on.
      try driver.store(IOVA(address.rawValue + 4096), byteCount: 64)
      try expectEqual(memory.bytes(4096..<4160), [UInt8](repeating: 0x11, count: 64), "memory that is still linked")
      _ = try linked.destroy()
    },
  ]
}

/// Counts from several threads.
final class Counter: Sendable {
  private let value = Atomic<Int>(0)
  /// One more than before: 1 the first time.
  func next() -> Int { value.wrappingAdd(1, ordering: .relaxed).newValue }
}
