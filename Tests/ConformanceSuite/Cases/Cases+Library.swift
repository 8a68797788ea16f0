import AddressSpace
import IOMMU

/// What the library promises of its own: directions, lists, translation, counters.
extension Cases {
  static let library: [ConformanceCase] = [
    ConformanceCase(.conformance, "library/interface") { environment in
      let device = try environment.open(environment.devices.edu)
      try expectEqual(device.interface, environment.interface, "the interface")
      try expectEqual(device.isSimulated, environment.isSimulated, "whether it is simulated")
      try expect(!device.interfaceReason.isEmpty, "No reason for the interface")
      let chosen = try { () throws in
        device.close()
        return try Device(environment.devices.edu, on: environment.host)
      }()
      try expectEqual(chosen.interface, .iommufd, "the interface where both are there")
    },
    ConformanceCase(.conformance, "library/buffer-round-trip") { environment in
      let device = try environment.open(environment.devices.edu)
      var buffer = try device.dma.buffer(byteCount: 1514)
      buffer.store(UInt32(0xdead_beef), at: 1510)
      let mapping = try device.dma.map(buffer, .toDevice)
      try expectEqual(mapping.byteCount, 1514, "the mapping's length")
      try expect(mapping.address.isAligned(to: device.dma.granule), "\(mapping.address) is in mid page")
      buffer = try mapping.unmap()
      try expectEqual(buffer.load(at: 1510, as: UInt32.self), 0xdead_beef, "the buffer's end")
    },
    ConformanceCase(.conformance, "library/list") { environment in
      let device = try environment.open(environment.devices.edu)
      var list = ScatterList()
      let lengths = [1, 4096, 5000, 64, 12288]
      for length in lengths { list.append(try device.dma.buffer(byteCount: length)) }
      let mapped = try device.dma.map(list, .bidirectional)
      // A part joins the one before it where that ends on a page.
      try expectEqual(mapped.segments.map(\.byteCount), [1, 4096 + 5000, 64, 12288], "lengths of the segments")
      try expectEqual(mapped.byteCount, 8 * 4096, "bytes of the range")
      var offset: UInt64 = 0
      for (index, length) in lengths.enumerated() {
        let address = mapped.address(ofBufferAt: index).rawValue
        try expectEqual(address, mapped.address.rawValue + offset, "where buffer \(index) begins")
        offset += (UInt64(length) + 4095) & ~4095
      }
      list = try mapped.unmap()
      try expectEqual(list.count, lengths.count, "buffers that came back")
      try expectEqual(device.dma.statistics.liveMappings, 0, "live mappings")
      try expectCode(.empty, what: "an empty list") { () throws(DMAError) in
        _ = try device.dma.map(ScatterList(), .toDevice)
      }
    },
    ConformanceCase(.conformance, "library/translate") { environment in
      let device = try environment.open(environment.devices.edu)
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      let mapping = try unsafe device.dma.map(unsafe: memory.buffer, .bidirectional, at: IOVA(0x30_0000))
      let base = unsafe UnsafeRawPointer(memory.base)
      let pointer = unsafe device.dma.translate(IOVA(0x30_0004), byteCount: 8188).map { UnsafeRawPointer($0) }
      try expect(unsafe pointer == base + 4, "The address leads elsewhere")
      try unsafe expect(
        device.dma.translate(IOVA(0x30_0004), byteCount: 8192) == nil, "It leads beyond the mapping")
      try expectEqual(
        unsafe device.dma.translate(base + 4096, byteCount: 4096), IOVA(0x30_1000), "where the memory is")
      try mapping.unmap()
      try unsafe expect(device.dma.translate(IOVA(0x30_0000)) == nil, "It leads somewhere after the unmap")
      try expect(unsafe device.dma.translate(base) == nil, "The memory is somewhere after the unmap")
    },
    ConformanceCase(.conformance, "library/statistics") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      defer { device.close() }
      let mapping = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
      let during = dma.statistics
      try expectEqual(during.liveMappings, 1, "live mappings")
      try expectEqual(during.liveBytes, 4096, "live bytes")
      _ = try mapping.unmap()
      let after = dma.statistics
      try expectEqual(after.unmaps - during.unmaps, 1, "unmaps")
      try expectEqual(after.systemCalls - during.systemCalls, 1, "system calls of one unmap")
      try expectEqual(after.leakedBytes, 0, "leaked bytes")
    },
    ConformanceCase(.conformance, "library/coherent") { environment in
      let device = try environment.open(environment.devices.edu), dma = device.dma
      defer { device.close() }
      let array = try dma.allocate(UInt64.self, count: 256)
      try expectEqual(array[255], 0, "fresh coherent memory")
      array[255] = 7
      try expectEqual(array[255], 7, "coherent memory")
      try expectEqual(
        array.address(of: 255).rawValue - array.address.rawValue, 255 * 8, "the last one's address")
      let calls = dma.statistics.systemCalls
      for _ in 0..<100 { _ = try dma.allocate(UInt64.self, count: 16) }
      try expectEqual(dma.statistics.systemCalls, calls, "system calls after 100 small arrays")
    },
  ]
}
