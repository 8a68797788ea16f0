import AddressSpace
import IOMMU

/// Maps and unmaps as the kernel does them: what `vfio_dma_mapping_test` and `vfio_dma_mapping_mmio_test` assert.
extension Cases {
  static let mapping: [ConformanceCase] = [
    ConformanceCase(.conformance, "map/page-4k") { environment in
      try mapUnmap(environment, byteCount: 4096, hugePageShift: nil)
    },
    ConformanceCase(.conformance, "map/page-2m") { environment in
      try mapUnmap(environment, byteCount: 2 << 20, hugePageShift: 21)
    },
    ConformanceCase(.conformance, "map/last-page") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 4096)
      guard let last = try raw.ranges().last?.last.rawValue else { throw Failure("no usable range") }
      let iova = last & ~0xfff
      try raw.map(memory.address, iova: iova, byteCount: 4096)
      try expectEqual(try raw.unmap(iova, byteCount: 4096), 4096, "bytes unmapped at \(iova.hexadecimal)")
    },
    ConformanceCase(.conformance, "map/beyond-last-page") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 4096)
      guard let last = try raw.ranges().last?.last.rawValue else { throw Failure("no usable range") }
      // iommufd looks for a place among the allowed addresses, type1 only whether this one is.
      try expectErrno(.invalidArgument, what: "map after the last usable address") { () throws(Errno) in
        try raw.map(memory.address, iova: (last & ~0xfff) + 4096, byteCount: 4096)
      }
    },
    ConformanceCase(.conformance, "map/overflow") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 8192)
      let iova = ~UInt64(0) & ~0xfff
      try expectErrno(.overflow, what: "map over the end of 64 bits") { () throws(Errno) in
        try raw.map(memory.address, iova: iova, byteCount: 8192)
      }
      try expectErrno(.overflow, what: "unmap over the end of 64 bits") { () throws(Errno) in
        try raw.unmap(iova, byteCount: 8192)
      }
    },
    ConformanceCase(.conformance, "map/unaligned") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 8192)
      let base = memory.address
      for (address, iova, byteCount) in [
        (base, UInt64(0x10_0800), UInt64(4096)), (base, 0x10_0000, 100), (base, 0x10_0000, 0),
      ] {
        try expectErrno(.invalidArgument, what: "\(byteCount) bytes at \(iova.hexadecimal)") {
          () throws(Errno) in
          try raw.map(address, iova: iova, byteCount: byteCount)
        }
      }
    },
    ConformanceCase(.conformance, "map/access-flags") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 4096)
      try expectErrno(.invalidArgument, what: "a map that neither reads nor writes") { () throws(Errno) in
        try raw.map(memory.address, iova: 0x10_0000, byteCount: 4096, access: 0)
      }
      for access: UInt32 in 1...3 {
        try raw.map(memory.address, iova: 0x10_0000, byteCount: 4096, access: access)
        try expectEqual(try raw.unmap(0x10_0000, byteCount: 4096), 4096, "bytes unmapped, access \(access)")
      }
    },
    ConformanceCase(.conformance, "map/not-memory") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      try expectErrno(.badAddress, what: "map of an address that is not mapped") { () throws(Errno) in
        try raw.map(0x1000, iova: 0x10_0000, byteCount: 4096)
      }
    },
    ConformanceCase(.conformance, "map/overlap") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 4 * 4096)
      try raw.map(memory.address, iova: 0x10_1000, byteCount: 2 * 4096)
      for (iova, byteCount) in [(UInt64(0x10_1000), UInt64(8192)), (0x10_2000, 4096), (0x10_0000, 16384)] {
        try expectErrno(.exists, what: "\(byteCount) bytes at \(iova.hexadecimal)") { () throws(Errno) in
          try raw.map(memory.address, iova: iova, byteCount: byteCount)
        }
      }
      try expectEqual(try raw.unmap(0x10_1000, byteCount: 8192), 8192, "bytes unmapped")
    },
    ConformanceCase(.conformance, "map/reserved") { environment in
      // The range of interrupt messages: 0xfee00000 on x86, the software window of the SMMU driver on arm64.
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let memory = try HostMemory(raw.kernel, byteCount: 4096)
      let iova: UInt64 = environment.isSMMU ? 0x800_0000 : 0xfee0_0000
      try expectErrno(.invalidArgument, what: "map of \(iova.hexadecimal)") { () throws(Errno) in
        try raw.map(memory.address, iova: iova, byteCount: 4096)
      }
      let range = IOVARange(start: IOVA(iova), byteCount: 4096)!
      try expect(try !raw.ranges().contains(range), "\(range) is among the usable ranges")
    },
    ConformanceCase(.conformance, "map/bar-memory") { environment in
      try mapBAR(environment)
    },
    ConformanceCase(.conformance, "ranges/usable") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let ranges = try raw.ranges()
      try expect(!ranges.isEmpty, "no usable range")
      let library = try { () throws in
        raw.close()
        return try environment.open(environment.devices.edu).dma.usableRanges
      }()
      for range in library {
        try expect(ranges.contains(range), "\(range) is the library's and not the kernel's: \(ranges)")
      }
      try expect(!library.contains(IOVARange(start: IOVA(0), byteCount: 1)!), "Address 0 is usable")
    },
    ConformanceCase(.conformance, "iommufd/ranges-alignment") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      try expectEqual(try raw.kernel.ioasRanges(raw.space, ioas: raw.ioas).alignment, 4096, "alignment")
    },
    ConformanceCase(.conformance, "iommufd/allow-ranges") { environment in
      try allowRanges(environment)
    },
    ConformanceCase(.conformance, "iommufd/map-file") { environment in
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let (kernel, iommufd, ioas) = (raw.kernel, raw.space, raw.ioas)
      let file = try kernel.createMemoryFile("conformance", byteCount: 16384, hugePageShift: nil)
      defer { kernel.close(file) }
      let flags = IOASMapFlags.fixed | IOASMapFlags.readable | IOASMapFlags.writable
      let iova = try kernel.ioasMapFile(
        iommufd, ioas: ioas, flags: flags, file: file, start: 4096, byteCount: 8192, iova: 0x10_0000)
      try expectEqual(iova, 0x10_0000, "where it is mapped")
      try expectEqual(try raw.unmap(iova, byteCount: 8192), 8192, "bytes unmapped")
      try expectErrno(.invalidArgument, what: "a part beyond the file's end") { () throws(Errno) in
        try kernel.ioasMapFile(
          iommufd, ioas: ioas, flags: flags, file: file, start: 12288, byteCount: 8192, iova: 0x10_0000)
      }
    },
  ]

  private static func mapUnmap(_ environment: Environment, byteCount: Int, hugePageShift: Int?) throws {
    let raw = try RawDevice(attached: environment.devices.edu, environment)
    let memory = try HostMemory(raw.kernel, byteCount: byteCount, hugePageShift: hugePageShift)
    memory.fill(0)
    let length = UInt64(byteCount), iova = UInt64(4 << 20)
    for _ in 0..<2 {
      try raw.map(memory.address, iova: iova, byteCount: length)
      try expectEqual(try raw.unmap(iova, byteCount: length), length, "bytes unmapped")
    }
    try expectEqual(try unmapNothing(raw, iova, length), 0, "bytes unmapped where nothing is")
  }

  /// iommufd answers ENOENT where nothing is mapped, type1 zero bytes.
  static func unmapNothing(_ raw: RawDevice, _ iova: UInt64, _ byteCount: UInt64) throws -> UInt64 {
    if raw.interface == .type1 { return try raw.unmap(iova, byteCount: byteCount) }
    try expectErrno(.noEntry, what: "unmap of nothing") { () throws(Errno) in
      try raw.unmap(iova, byteCount: byteCount)
    }
    return 0
  }

  /// iommufd refuses a BAR, since it could not revoke it; type1 takes it.
  private static func mapBAR(_ environment: Environment) throws {
    let raw = try RawDevice(attached: environment.devices.edu, environment)
    let region = try raw.kernel.vfioRegionInfo(raw.device, index: 0)
    let base = unsafe try raw.kernel.mapMemory(byteCount: 8192, descriptor: raw.device, offset: region.offset)
    defer { unsafe raw.kernel.unmapMemory(base, byteCount: 8192) }
    let address = UInt64(UInt(bitPattern: base))
    switch raw.interface {
    case .iommufd:
      try expectErrno(.badAddress, .invalidArgument, what: "map of a BAR") { () throws(Errno) in
        try raw.map(address, iova: 0x10_0000, byteCount: 8192)
      }
    case .type1:
      try raw.map(address, iova: 0x10_0000, byteCount: 8192)
      try expectEqual(try raw.unmap(0x10_0000, byteCount: 8192), 8192, "bytes unmapped")
    }
  }

  private static func allowRanges(_ environment: Environment) throws {
    let raw = try RawDevice(attached: environment.devices.edu, environment)
    let (kernel, iommufd, ioas) = (raw.kernel, raw.space, raw.ioas)
    let allowed = IOVARange(start: IOVA(0x10_0000), byteCount: 0x10_0000)!
    try kernel.ioasAllow(iommufd, ioas: ioas, ranges: [allowed])
    // The allowed list guides the kernel's own choice; a fixed address needs it no less.
    let memory = try HostMemory(kernel, byteCount: 4096)
    let flags = IOASMapFlags.readable | IOASMapFlags.writable
    let iova = try kernel.ioasMap(
      iommufd, ioas: ioas, flags: flags, address: memory.address, byteCount: 4096, iova: 0)
    try expect(allowed.contains(IOVA(iova)), "\(iova.hexadecimal) is outside of the allowed list")
    let reserved: UInt64 = environment.isSMMU ? 0x800_0000 : 0xfee0_0000
    try expectErrno(.addressInUse, what: "allowing a reserved range") { () throws(Errno) in
      try kernel.ioasAllow(
        iommufd, ioas: ioas, ranges: [IOVARange(start: IOVA(reserved), byteCount: 4096)!])
    }
    try expectErrno(.invalidArgument, what: "allowing ranges that overlap") { () throws(Errno) in
      try kernel.ioasAllow(iommufd, ioas: ioas, ranges: [allowed, allowed])
    }
  }
}
