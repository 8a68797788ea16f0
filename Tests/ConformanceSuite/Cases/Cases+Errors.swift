import AddressSpace
import IOMMU

/// Bad input gets an error that names the operation, the errno, the place and what to do.
extension Cases {
  static let errors: [ConformanceCase] = [
    ConformanceCase(.conformance, "error/no-such-device") { environment in
      for address in ["ffff:1f:1f.7", "nonsense", ""] {
        let error = try expectCode(.noSuchDevice, what: "opening '\(address)'") { () throws(DMAError) in
          _ = try environment.open(address)
        }
        try expectEqual(error.device, address, "the device that the error names")
      }
    },
    ConformanceCase(.conformance, "error/not-bound") { environment in
      guard let address = environment.devices.sharedGroup.last else { throw Failure("no shared group") }
      let error = try expectCode(.notBound, what: "opening a device of virtio-pci") { () throws(DMAError) in
        _ = try environment.open(address)
      }
      try expectText(error, has: address, "virtio-pci", "bind")
    },
    ConformanceCase(.conformance, "error/group-not-viable") { environment in
      guard let address = environment.devices.sharedGroup.first else { throw Failure("no shared group") }
      let error = try expectCode(.groupNotViable, what: "opening a device of that group") {
        () throws(DMAError) in
        _ = try environment.open(address)
      }
      try expectText(error, has: address, "vfio-pci")
    },
    ConformanceCase(.conformance, "error/unsafe-interrupts") { environment in
      let error = try expectCode(.unsafeInterrupts, what: "opening without interrupt remapping") {
        () throws(DMAError) in
        _ = try environment.open(environment.devices.edu)
      }
      try expectEqual(error.errno, .notPermitted, "the kernel's answer")
      let remedy = environment.simulated == nil ? "intremap" : "isolatesInterrupts"
      try expectText(error, has: environment.devices.edu, remedy)
    },
    ConformanceCase(.conformance, "error/second-open") { environment in
      let device = try environment.open(environment.devices.edu)
      let error = try expectCode(.busy, .incompatibleDevice, what: "opening it twice") {
        () throws(DMAError) in
        _ = try environment.open(environment.devices.edu)
      }
      try expect(error.errno == .busy || error.errno == .invalidArgument, "\(error)")
      try expectEqual(try device.config.deviceID(), 0x11e8, "the first user's device")
    },
    ConformanceCase(.conformance, "error/token") { environment in
      let error = try expectCode(.virtualFunctionToken, what: "a token that is no UUID") {
        () throws(DMAError) in
        _ = try Device(
          environment.devices.edu, on: environment.host, interface: environment.interface, token: "1234")
      }
      try expectText(error, has: "8-4-4-4-12")
    },
    ConformanceCase(.conformance, "error/map-arguments") { environment in try mapArguments(environment) },
    ConformanceCase(.conformance, "error/overlap-names-both") { environment in
      let device = try environment.open(environment.devices.edu)
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      let first = try unsafe device.dma.map(unsafe: memory.buffer, .bidirectional, at: IOVA(0x20_0000))
      let error = try expectCode(.overlap, what: "a second map") { () throws(DMAError) in
        _ = try unsafe device.dma.map(unsafe: memory.buffer, .bidirectional, at: IOVA(0x20_1000))
      }
      try expectText(error, has: "0x200000", "0x201fff", "0x201000", "0x202fff", environment.devices.edu)
      try first.unmap()
    },
    ConformanceCase(.conformance, "error/mask") { environment in
      let device = try environment.open(environment.devices.edu)
      try expectCode(.outsideMask, what: "a mask of one page") { () throws(DMAError) in
        try device.dma.setMask(.bits(12))
      }
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      let mapping = try unsafe device.dma.map(unsafe: memory.buffer, .toDevice, at: IOVA(0x4000_0000))
      let error = try expectCode(.outsideMask, what: "a mask below a mapping") { () throws(DMAError) in
        try device.dma.setMask(.bits(30))
      }
      try expectText(error, has: "0x40000000")
      try mapping.unmap()
      try device.dma.setMask(.bits(30))
      try expectCode(.outsideMask, what: "a fixed address above the mask") { () throws(DMAError) in
        _ = try unsafe device.dma.map(unsafe: memory.buffer, .toDevice, at: IOVA(0x4000_0000))
      }
    },
    ConformanceCase(.conformance, "error/closed") { environment in
      let device = try environment.open(environment.devices.edu)
      let buffer = try device.dma.buffer(byteCount: 100)
      device.close()
      device.close()
      try expect(device.isClosed && device.dma.isClosed, "Not closed")
      try expectCode(.closed, what: "buffer after close") { () throws(DMAError) in
        _ = try device.dma.buffer(byteCount: 100)
      }
      try expectCode(.closed, what: "allocate after close") { () throws(DMAError) in
        _ = try device.dma.allocate(UInt64.self, count: 8)
      }
      let error = mapError(device, buffer)
      try expectEqual(error?.code, .closed, "the code of map after close")
    },
    ConformanceCase(.conformance, "error/foreign-buffer") { environment in
      let device = try environment.open(environment.devices.edu)
      let other = try environment.open(environment.devices.secondEdu)
      let error = mapError(device, try other.dma.buffer(byteCount: 64))
      try expectEqual(error?.code, .invalidArgument, "the code of a map of another domain's buffer")
    },
  ]

  private static func mapError(_ device: Device, _ buffer: consuming DMABuffer) -> DMAError? {
    do throws(DMAError) {
      _ = try device.dma.map(buffer, .toDevice)
      return nil
    } catch { return error }
  }

  private static func mapArguments(_ environment: Environment) throws {
    let device = try environment.open(environment.devices.edu)
    let memory = try HostMemory(environment.kernel, byteCount: 8192)
    let base = unsafe memory.base
    let last = device.dma.usableRanges.last!.last.rawValue & ~0xfff
    let reserved: UInt64 = environment.isSMMU ? 0x800_0000 : 0xfee0_0000
    let outside: DMAError.Code = last == ~0xfff ? .overflow : .outsideAperture
    let tries: [(DMAError.Code, Int, Int, UInt64?)] = [
      (.empty, 0, 0, nil), (.unaligned, 0, 100, nil), (.unaligned, 4, 4096, nil),
      (.unaligned, 0, 4096, 0x10_0800),
      (outside, 0, 4096, last &+ 0x1000), (.overflow, 0, 8192, ~0xfff),
    ]
    for (code, offset, byteCount, address) in tries {
      let error = try expectCode(code, .outsideAperture, what: "\(byteCount) bytes") { () throws(DMAError) in
        let part = unsafe UnsafeRawBufferPointer(start: base + offset, count: byteCount)
        _ = try unsafe device.dma.map(unsafe: part, .toDevice, at: address.map { IOVA($0) })
      }
      try expectEqual(error.device, environment.devices.edu, "the device that the error names")
    }
    try expectCode(.reserved, .outsideAperture, what: "a reserved address") { () throws(DMAError) in
      _ = try unsafe device.dma.map(unsafe: memory.buffer, .toDevice, at: IOVA(reserved))
    }
    try expectCode(.badMemory, what: "memory that is not there") { () throws(DMAError) in
      let nowhere = unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: 0x1000), count: 4096)
      _ = try unsafe device.dma.map(unsafe: nowhere, .toDevice)
    }
    try expectEqual(device.dma.statistics.liveMappings, 0, "live mappings")
  }
}
