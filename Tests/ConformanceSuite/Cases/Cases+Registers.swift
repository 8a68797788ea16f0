import IOMMU
import NVMeDriver

/// Config space and BARs: what `vfio_pci_device_test` asserts, by the kernel's calls and by the library.
extension Cases {
  static let registers: [ConformanceCase] = [
    ConformanceCase(.conformance, "config/identity") { environment in
      let device = try environment.open(environment.devices.edu)
      let details = try environment.details(environment.devices.edu)
      try expectEqual(try device.config.vendorID(), details.vendor, "vendor as sysfs has it")
      try expectEqual(try device.config.deviceID(), details.device, "device as sysfs has it")
      try expectEqual(try device.config.load(at: 0, as: UInt32.self), 0x11e8_1234, "both in one access")
      try expectEqual(try device.config.load(at: 1, as: UInt8.self), 0x12, "one byte of it")
    },
    ConformanceCase(.conformance, "config/bus-master") { environment in
      let device = try environment.open(environment.devices.edu)
      try expect(try device.config.command().contains([.memory, .busMaster]), "Not set when opened")
      try device.config.updateCommand(clear: .busMaster)
      try expect(try !device.config.command().contains(.busMaster), "Bus mastering cannot be cleared")
      try device.config.updateCommand(set: .busMaster)
      try expect(try device.config.command().contains(.busMaster), "Bus mastering cannot be set")
    },
    ConformanceCase(.conformance, "config/bounds") { environment in
      let config = try environment.open(environment.devices.edu).config
      try expectEqual(config.byteCount, 256, "bytes of a conventional device's config space")
      for offset in [-4, 2, config.byteCount] {
        try expectCode(.invalidArgument, .closed, what: "32 bits at \(offset)") { () throws(DMAError) in
          _ = try config.load(at: offset, as: UInt32.self)
        }
      }
    },
    ConformanceCase(.conformance, "config/off-after-close") { environment in
      let device = try environment.open(environment.devices.edu)
      device.close()
      try expectCode(.closed, what: "config space after close") { () throws(DMAError) in
        _ = try device.config.vendorID()
      }
      // The kernel shows what the library left behind.
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      let region = try raw.kernel.vfioRegionInfo(raw.device, index: VFIOPCI.config)
      var command: UInt16 = 0
      try unsafe withUnsafeMutableBytes(of: &command) { bytes in
        _ = try unsafe raw.kernel.pread(raw.device, bytes, at: region.offset + 4)
      }
      try expectEqual(command & 4, 0, "the bus-master bit of a device just opened")
    },
    ConformanceCase(.conformance, "bar/regions") { environment in
      for address in [environment.devices.edu, environment.devices.nvme] {
        let raw = try RawDevice(address, environment)
        try raw.bind()
        let regions = try (UInt32(0)..<6).map { index in
          try raw.kernel.vfioRegionInfo(raw.device, index: index)
        }
        try expect(regions[0].byteCount > 0 && regions[0].canRead && regions[0].canWrite, "\(regions[0])")
        for region in regions where region.byteCount == 0 {
          try expect(!region.canMap, "BAR \(region.index) has no bytes and can be mapped")
        }
        // The simulated kernel lets no BAR be mapped, so that its models see each access.
        try expectEqual(regions[0].canMap, !environment.isSimulated, "BAR 0 of \(address) can be mapped")
        try expectErrno(.invalidArgument, what: "a region that is not there") { () throws(Errno) in
          try raw.kernel.vfioRegionInfo(raw.device, index: 999)
        }
      }
    },
    ConformanceCase(.conformance, "bar/access") { environment in
      let device = try environment.open(environment.devices.edu)
      let bar = try device.registers(bar: 0)
      try expectEqual(bar.byteCount, 1 << 20, "bytes of edu's BAR")
      try expectEqual(bar[0], 0x0100_00ed, "edu's identification")
      bar[4] = 0x1234_5678
      try expectEqual(bar[4], ~0x1234_5678, "edu's inverting register")
      bar.store(0x1122_3344_5566_7788 as UInt64, at: 0x80)
      try expectEqual(bar.load(at: 0x80, as: UInt64.self), 0x1122_3344_5566_7788, "a 64-bit register")
      try expectEqual(bar.mappedRanges.isEmpty, environment.isSimulated, "nothing is mapped")
      try expect(try device.registers(bar: 0) === bar, "Another object for the same BAR")
    },
    ConformanceCase(.conformance, "bar/absent") { environment in
      let device = try environment.open(environment.devices.edu)
      for bar in [-1, 1, 5, 6] {
        try expectCode(.noSuchResource, what: "BAR \(bar)") { () throws(DMAError) in
          _ = try device.registers(bar: bar)
        }
      }
    },
    ConformanceCase(.conformance, "bar/after-close") { environment in
      let device = try environment.open(environment.devices.edu)
      let bar = try device.registers(bar: 0)
      device.close()
      try expectEqual(bar[0], .max, "a register after close")
      bar[4] = 1
      // A mapped BAR keeps a device open: that it can be opened again shows that nothing is left.
      let again = try environment.open(environment.devices.edu)
      try expectEqual(try again.registers(bar: 0)[0], 0x0100_00ed, "edu's identification")
    },
    ConformanceCase(.conformance, "reset/function") { environment in
      let device = try environment.open(environment.devices.nvme)
      try expect(device.canReset, "The NVMe controller has a reset")
      let bar = try device.registers(bar: 0)
      let controller = try NVMeController(device)
      try expectEqual(bar[0x1c] & 1, 1, "the ready bit of a controller that runs")
      try device.reset()
      try expectEqual(bar[0x1c] & 1, 0, "the ready bit after the reset")
      try expect(
        try device.config.command().contains([.memory, .busMaster]),
        "The kernel restores the command register")
      let again = try NVMeController(device)
      try expectEqual(again.serial, controller.serial, "the serial number")
    },
    ConformanceCase(.conformance, "reset/refused") { environment in
      let device = try environment.open(environment.devices.edu)
      try expect(!device.canReset, "edu has no reset")
      let error = try expectCode(.noSuchResource, what: "reset of edu") { () throws(DMAError) in
        try device.reset()
      }
      try expectText(error, has: "VFIO_DEVICE_RESET", environment.devices.edu)
    },
  ]
}
