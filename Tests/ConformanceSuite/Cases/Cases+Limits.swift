import AddressSpace
import IOMMU

/// Unmaps of ranges, and how many maps there can be.
extension Cases {
  static let limits: [ConformanceCase] = [
    ConformanceCase(.conformance, "unmap/range-of-maps") { environment in
      let (raw, memory) = try fourMaps(environment)
      _ = memory
      try expectEqual(
        try raw.unmap(0x10_0000, byteCount: 4 * 8192), 4 * 8192, "bytes of four maps in one unmap")
      try expectEqual(try unmapNothing(raw, 0x10_0000, 4 * 8192), 0, "bytes unmapped again")
    },
    ConformanceCase(.conformance, "unmap/wider-than-maps") { environment in
      let (raw, memory) = try fourMaps(environment)
      _ = memory
      try expectEqual(try raw.unmap(0, byteCount: 1 << 30), 4 * 8192, "bytes of all maps inside a wide range")
    },
    ConformanceCase(.conformance, "unmap/all") { environment in
      let (raw, memory) = try fourMaps(environment)
      _ = memory
      try expectEqual(try raw.unmapAll(), 4 * 8192, "bytes unmapped")
      try expectEqual(try raw.unmapAll(), 0, "bytes unmapped again")
    },
    ConformanceCase(.conformance, "unmap/bisecting") { environment in
      let (raw, memory) = try fourMaps(environment)
      _ = memory
      let wanted: Errno = raw.interface == .iommufd ? .noEntry : .invalidArgument
      for (iova, byteCount) in [(UInt64(0x10_0000), UInt64(4096)), (0x10_1000, 4096), (0x10_1000, 8192)] {
        try expectErrno(wanted, what: "unmap of \(byteCount) bytes at \(iova.hexadecimal)") {
          () throws(Errno) in
          try raw.unmap(iova, byteCount: byteCount)
        }
      }
      try expectEqual(try raw.unmapAll(), 4 * 8192, "bytes that are still mapped")
    },
    ConformanceCase(.conformance, "unmap/unaligned") { environment in
      let (raw, memory) = try fourMaps(environment)
      _ = memory
      let wanted: Errno = raw.interface == .iommufd ? .noEntry : .invalidArgument
      try expectErrno(wanted, what: "unmap of 100 bytes") { () throws(Errno) in
        try raw.unmap(0x10_0000, byteCount: 100)
      }
    },
    ConformanceCase(.conformance, "type1/entry-limit") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 4096)
      let limit: UInt64 = 65_535
      for index in 0..<limit {
        try raw.map(memory.address, iova: 0x1_0000_0000 + index * 8192, byteCount: 4096)
      }
      try expectErrno(.noSpace, what: "one map more than \(limit)") { () throws(Errno) in
        try raw.map(memory.address, iova: 0x1000_0000, byteCount: 4096)
      }
      try expectEqual(try raw.kernel.vfioContainerInfo(raw.space).availableEntries, 0, "map entries left")
      try expectEqual(try raw.unmapAll(), limit * 4096, "bytes unmapped")
    },
    ConformanceCase(.conformance, "type1/entry-limit-error") { environment in
      try entryLimit(environment)
    },
  ]

  /// Four maps of two pages, one after the other from 1 MiB on.
  private static func fourMaps(_ environment: Environment) throws -> (RawDevice, HostMemory) {
    let raw = try RawDevice(attached: environment.devices.edu, environment)
    let memory = try HostMemory(raw.kernel, byteCount: 4 * 8192)
    for index in UInt64(0)..<4 {
      try raw.map(memory.address + index * 8192, iova: 0x10_0000 + index * 8192, byteCount: 8192)
    }
    return (raw, memory)
  }

  /// The library's error says what the limit is and what to do; nothing is lost.
  private static func entryLimit(_ environment: Environment) throws {
    let device = try environment.open(environment.devices.edu)
    let memory = try HostMemory(environment.kernel, byteCount: 4096)
    var held: [Held] = []
    var failure: DMAError?
    while failure == nil, held.count <= 65_535 {
      do throws(DMAError) {
        held.append(Held(try unsafe device.dma.map(unsafe: memory.buffer, .toDevice)))
      } catch { failure = error }
    }
    guard let failure else { throw Failure("\(held.count) maps went well") }
    try expectEqual(failure.code, .tooManyMappings, "the error's code")
    try expectText(failure, has: "65535", "ENOSPC")
    try expectEqual(device.dma.statistics.liveMappings, held.count, "live mappings")
    held.removeAll()
    try expectEqual(device.dma.statistics.liveMappings, 0, "live mappings after the drop")
  }

  /// A mapping in a box: arrays hold nothing that cannot be copied.
  private final class Held {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}
