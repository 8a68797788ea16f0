import AddressSpace
import IOMMU

/// Scatter lists under a device's constraints, and long memory in areas.
extension Cases {
  static let lists: [ConformanceCase] = [
    ConformanceCase(.conformance, "list/neighbours") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      let list = try buffers(dma, [Int](repeating: 4096, count: 16))
      let mapped = try dma.map(list, .bidirectional)
      try expectEqual(
        dma.statistics.systemCalls, environment.calls(1, process: 0), "system calls to map 16 neighbours")
      try expectEqual(mapped.segments.map(\.byteCount), [16 * 4096], "lengths of the segments")
      _ = try mapped.unmap()
      try expectEqual(dma.statistics.systemCalls, environment.calls(2, process: 1), "system calls after the unmap")
    },
    ConformanceCase(.conformance, "list/apart") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      var list = try buffers(dma, [Int](repeating: 4096, count: 16)), reversed = ScatterList()
      while list.count > 0 { reversed.append(list.removeLast()) }
      let mapped = try dma.map(reversed, .bidirectional)
      try expectEqual(mapped.segmentCount, 1, "segments")
      let calls = dma.statistics.systemCalls
      _ = try mapped.unmap()
      try expectEqual(dma.statistics.systemCalls, calls + 1, "system calls after the unmap of 16 maps")
    },
    ConformanceCase(.conformance, "list/boundary") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      try dma.setConstraints(DMAConstraints(maxSegmentByteCount: 12288, boundary: PageSize(shift: 14)))
      // The second does not fit behind the first, the third fits behind the second, the last is cut.
      let mapped = try dma.map(try buffers(dma, [8192, 12288, 4096, 100, 40960]), .toDevice)
      let start = mapped.address.rawValue
      try expectEqual(start % 16384, 0, "where the range begins in its 16 KiB")
      let wanted: [(UInt64, Int)] = [
        (0, 8192), (16384, 12288), (28672, 4096), (32768, 100), (49152, 12288), (61440, 4096), (65536, 12288),
        (77824, 4096), (81920, 8192),
      ]
      let found = mapped.segments.map { "\($0.address.rawValue - start)+\($0.byteCount)" }
      try expectEqual(found, wanted.map { "\($0.0)+\($0.1)" }, "the segments")
      // The gap behind the first buffer is nobody's while the list is mapped.
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      try expectCode(.reserved, what: "a map in the gap") { () throws(DMAError) in
        _ = try unsafe dma.map(unsafe: memory.buffer, .toDevice, at: IOVA(start + 8192))
      }
      _ = try mapped.unmap()
      try unsafe dma.map(unsafe: memory.buffer, .toDevice, at: IOVA(start + 8192)).unmap()
      try expectEqual(dma.statistics.liveMappings, 0, "live mappings")
    },
    ConformanceCase(.conformance, "list/too-many-segments") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      try dma.setConstraints(DMAConstraints(maxSegmentCount: 2))
      let calls = dma.statistics.systemCalls
      try expectCode(.tooManySegments, what: "three segments where two are taken") { () throws(DMAError) in
        _ = try dma.map(try buffers(dma, [100, 100, 100]), .toDevice)
      }
      try expectEqual(dma.statistics.systemCalls, calls, "system calls")
      _ = try dma.map(try buffers(dma, [100, 4096, 100]), .toDevice).unmap()
    },
    ConformanceCase(.conformance, "list/foreign") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      let memory = try HostMemory(environment.kernel, byteCount: 3 * 4096)
      var list = try buffers(dma, [4096])
      unsafe list.append(unsafe: UnsafeRawBufferPointer(rebasing: memory.buffer[100..<8192]), widening: true)
      list.append(try dma.buffer(byteCount: 4096))
      let mapped = try dma.map(list, .toDevice), start = mapped.address.rawValue
      let found = mapped.segments.map { "\($0.address.rawValue - start)+\($0.byteCount)" }
      try expectEqual(found, ["0+4096", "4196+12188"], "the segments")
      _ = try mapped.unmap()
    },
    ConformanceCase(.conformance, "bulk/areas") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      let memory = try HostMemory(environment.kernel, byteCount: 40 << 20)
      guard let mapping = try unsafe dma.mapBulk(unsafe: memory.buffer, .bidirectional, threads: 2) else {
        throw Failure("Nothing was mapped")
      }
      try expectEqual(dma.statistics.systemCalls, 2, "system calls to map 40 MiB")
      try expectEqual(dma.statistics.liveBytes, 40 << 20, "live bytes")
      guard try mapping.unmapBulk(threads: 2) == nil else { throw Failure("Something is left") }
      // Memory that nobody registered leaves stage 2 after the invalidation.
      try expectEqual(dma.statistics.systemCalls, environment.calls(4, process: 6), "system calls after the unmap")
      try expectEqual(dma.statistics.liveMappings, 0, "live mappings")
    },
    ConformanceCase(.conformance, "bulk/stopped") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      let memory = try HostMemory(environment.kernel, byteCount: 40 << 20)
      let mapping = try unsafe dma.map(unsafe: memory.buffer, .bidirectional), start = mapping.address.rawValue
      let asked = Counter()
      guard let rest = try mapping.unmapBulk(isCancelled: { asked.next() > 1 }) else {
        throw Failure("It went to the end")
      }
      try expectEqual(rest.address.rawValue, start + 32 << 20, "where the rest begins")
      try expectEqual(rest.byteCount, 8 << 20, "the rest's length")
      try rest.unmap()
      try expectEqual(dma.statistics.liveBytes, 0, "live bytes")
    },
  ]

  static func buffers(_ dma: DMADomain, _ lengths: [Int]) throws(DMAError) -> ScatterList {
    var list = ScatterList(capacity: lengths.count)
    for length in lengths { list.append(try dma.buffer(byteCount: length)) }
    return list
  }
}
