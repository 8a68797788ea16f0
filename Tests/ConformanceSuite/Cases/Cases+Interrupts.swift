import IOMMU

/// INTx, MSI and MSI-X as event descriptors.
extension Cases {
  static let interrupts: [ConformanceCase] = [
    ConformanceCase(.conformance, "interrupt/msi-loopback") { environment in
      try loopBack(environment, environment.devices.edu, .msi)
    },
    ConformanceCase(.conformance, "interrupt/intx-loopback") { environment in
      try loopBack(environment, environment.devices.edu, .intx)
    },
    ConformanceCase(.conformance, "interrupt/msix-loopback") { environment in
      try loopBack(environment, environment.devices.nvme, .msix)
    },
    ConformanceCase(.conformance, "interrupt/igb-msix") { environment in
      try loopBack(environment, environment.devices.igb ?? "", .msix)
    },
    ConformanceCase(.conformance, "interrupt/raw-eventfd") { environment in
      // Attached: behind an SMMUv3 Linux cannot place the doorbell of a device that is bound to iommufd only, and after
      // the ENOSPC that it then gives the device's one message is lost until the next boot.
      let raw = try RawDevice(attached: environment.devices.edu, environment)
      let kernel = raw.kernel, event = try kernel.createEvent()
      defer { kernel.close(event) }
      try kernel.vfioSetInterrupts(raw.device, index: VFIOPCI.msi, start: 0, events: [event])
      try expectEqual(try kernel.takeEvent(event), nil, "the count before the trigger (EAGAIN)")
      try kernel.vfioInterruptAction(raw.device, index: VFIOPCI.msi, start: 0, count: 1, .trigger)
      try expectEqual(try kernel.takeEvent(event), 1, "the count after the trigger")
      try expectEqual(try kernel.takeEvent(event), nil, "the count after taking it")
      try kernel.vfioInterruptAction(raw.device, index: VFIOPCI.msi, start: 0, count: 0, .trigger)
    },
    ConformanceCase(.conformance, "interrupt/errors") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      let kernel = raw.kernel, event = try kernel.createEvent()
      defer { kernel.close(event) }
      let msix = try kernel.vfioInterruptInfo(raw.device, index: VFIOPCI.msix)
      try expectEqual(msix.count, 0, "MSI-X vectors of edu")
      for (index, start) in [(VFIOPCI.msix, UInt32(0)), (VFIOPCI.msi, 1), (99, 0)] {
        try expectErrno(.invalidArgument, what: "vector \(start) of index \(index)") { () throws(Errno) in
          try kernel.vfioSetInterrupts(raw.device, index: index, start: start, events: [event])
        }
      }
    },
    ConformanceCase(.conformance, "interrupt/from-device") { environment in
      let device = try environment.open(environment.devices.edu)
      let bar = try device.registers(bar: 0)
      for kind in [Interrupt.Kind.msi, .intx] {
        try fromDevice(try environment.open(environment.devices.secondEdu), kind)
      }
      try expectEqual(bar[0x24], 0, "the other device's interrupt status")
    },
    ConformanceCase(.conformance, "interrupt/limits") { environment in
      let device = try environment.open(environment.devices.edu)
      try expectEqual(device.interruptCount(.msi), 1, "MSI vectors of edu")
      try expectEqual(device.interruptCount(.intx), 1, "INTx of edu")
      try expectCode(.noSuchResource, what: "MSI 1 of edu") { () throws(DMAError) in
        _ = try device.interrupt(1, .msi)
      }
      try expectCode(.noSuchResource, what: "MSI-X of edu") { () throws(DMAError) in
        _ = try device.interrupt(0, .msix)
      }
      let interrupt = try device.interrupt(0)
      try expectCode(.timedOut, what: "waiting for nothing") { () throws(DMAError) in
        try interrupt.wait(timeout: .milliseconds(1))
      }
      device.close()
      try expectCode(.closed, what: "waiting after close") { () throws(DMAError) in
        try interrupt.wait(timeout: .seconds(1))
      }
    },
  ]

  /// The kernel signals the event as if the device had: nothing before, one after.
  private static func loopBack(_ environment: Environment, _ address: String, _ kind: Interrupt.Kind) throws {
    let device = try environment.open(address)
    let interrupt = try device.interrupt(0, kind)
    try expectEqual(try interrupt.tryTake(), nil, "the count before the trigger")
    for _ in 0..<3 {
      try interrupt.trigger()
      try expectEqual(try interrupt.wait(timeout: .seconds(1)), 1, "the count after the trigger")
      try expectEqual(try interrupt.tryTake(), nil, "the count after taking it")
    }
  }

  /// edu raises an interrupt itself when told to.
  private static func fromDevice(_ device: Device, _ kind: Interrupt.Kind) throws {
    let bar = try device.registers(bar: 0)
    let interrupt = try device.interrupt(0, kind)
    for round in 0..<3 {
      bar[0x60] = 1
      try interrupt.wait(timeout: .seconds(1))
      try expectEqual(bar[0x24], 1, "interrupt status in round \(round) of \(kind.rawValue)")
      bar[0x64] = 1
      try interrupt.rearm()
    }
    device.close()
  }
}
