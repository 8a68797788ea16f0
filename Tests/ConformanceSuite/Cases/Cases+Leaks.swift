import AddressSpace
import IOMMU
import IOMMUSimulation

/// Every call of the kernel fails once, one after the other: afterwards nothing is left behind.
extension Cases {
  static let leaks: [ConformanceCase] = [
    ConformanceCase(.conformance, "fail/open") { environment in
      try failEach(environment) { _, environment in _ = try environment.open(environment.devices.edu) }
    },
    ConformanceCase(.conformance, "fail/attach") { environment in
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, environment in
        _ = try environment.open(environment.devices.secondEdu, sharing: device!.dma)
      }
    },
    ConformanceCase(.conformance, "fail/map") { environment in
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        let mapping = try device!.dma.map(try device!.dma.buffer(byteCount: 9000), .bidirectional)
        let other = try unsafe device!.dma.map(unsafe: memory.buffer, .toDevice)
        try expect(mapping.address != other.address, "one address for two")
      }
    },
    ConformanceCase(.conformance, "fail/unmap") { environment in
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        let mapping = try device!.dma.map(try device!.dma.buffer(byteCount: 9000), .bidirectional)
        _ = try mapping.unmap()
      }
    },
    ConformanceCase(.conformance, "fail/map-list") { environment in
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        var list = ScatterList()
        for length in [1, 4096, 5000, 64] { list.append(try device!.dma.buffer(byteCount: length)) }
        _ = try device!.dma.map(list, .toDevice).unmap()
      }
    },
    ConformanceCase(.conformance, "fail/map-list-apart") { environment in
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        try device!.dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 13)))
        var list = try buffers(device!.dma, [4096, 8192, 4096, 5000, 4096]), reversed = ScatterList()
        while list.count > 0 { reversed.append(list.removeLast()) }
        _ = try device!.dma.map(reversed, .toDevice)
      }
    },
    ConformanceCase(.conformance, "fail/reserve") { environment in
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        let dma = device!.dma
        var reservation = try dma.reserve(byteCount: 8 * 4096)
        for page in [0, 1, 4] { try reservation.link(try dma.buffer(byteCount: 4096), at: page * 4096, .toDevice) }
        try unsafe reservation.link(unsafe: memory.buffer, at: 5 * 4096, .bidirectional)
        var linked = try reservation.sync()
        _ = try linked.unlink(4 * 4096..<5 * 4096)
        reservation = linked.reopen()
        try reservation.link(try dma.buffer(byteCount: 8192), at: 6 * 4096, .fromDevice)
        _ = try reservation.destroy()
      }
    },
    ConformanceCase(.conformance, "fail/bulk") { environment in
      let memory = try HostMemory(environment.kernel, byteCount: 40 << 20)
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        guard let mapping = try unsafe device!.dma.mapBulk(unsafe: memory.buffer, .toDevice, threads: 2) else { return }
        _ = try mapping.unmapBulk(threads: 2)
      }
    },
    ConformanceCase(.conformance, "fail/allocate") { environment in
      try failEach(environment, first: { try $0.open($0.devices.edu) }) { device, _ in
        let small = try device!.dma.allocate(UInt64.self, count: 16)
        let large = try device!.dma.allocate(UInt64.self, count: 1 << 17)
        try expect(small.address != large.address, "one address for two")
      }
    },
    ConformanceCase(.conformance, "fail/registers-interrupts") { environment in
      try failEach(environment, sparing: ["waitReadable"], first: { try $0.open($0.devices.edu) }) { device, _ in
        try expectEqual(try device!.registers(bar: 0).byteCount, 1 << 20, "bytes of the BAR")
        _ = try device!.interrupt(0, .msi).tryTake()
      }
    },
    ConformanceCase(.conformance, "fail/close") { environment in
      try failEach(
        environment,
        first: { environment in
          let device = try environment.open(environment.devices.edu)
          _ = try device.interrupt(0, .msi)
          return device
        }
      ) { device, _ in
        let mapping = try device!.dma.map(try device!.dma.buffer(byteCount: 64), .bidirectional)
        device!.close()
        _ = try mapping.unmap()
      }
    },
  ]

  /// Reading sysfs needs no real kernel to fail: left to the simulated one, where it takes no time.
  private static let files: Set<String> = ["readFile", "listDirectory", "readLink", "status", "checkAccess"]
  /// What threads that watch ask comes when it comes, and is no part of the operation.
  private static let watching: Set<String> = ["waitReadable", "takeEvent"]

  /// The calls that fail: all of them, one after the other, on a simulated machine. A real kernel takes its time over each
  /// device that is opened and closed: there a machine has every third call fail, and three machines have all.
  private static func chosenCalls(_ environment: Environment) -> StrideThrough<Int> {
    if environment.isSimulated { return stride(from: 1, through: 1000, by: 1) }
    return stride(from: 1 + environment.machine.utf8.reduce(0) { $0 + Int($1) } % 3, through: 1000, by: 3)
  }

  /// Runs an operation with its first call failing, then its second, until one run gets by without a failure.
  /// `first` runs undisturbed before each; its device is closed after.
  private static func failEach(
    _ environment: Environment, sparing watching: Set<String> = watching,
    first: (Environment) throws -> Device? = { _ in nil },
    _ operation: (Device?, Environment) throws -> Void
  ) throws {
    let faulting = FaultingKernel(environment.kernel)
    let failing = environment.asking(faulting)
    var others = try Belongings.settled(environment, others: nil).others
    for number in chosenCalls(environment) {
      faulting.passAll()
      faulting.resetCounts()
      var leaked: UInt64 = 0
      var text = "went well"
      do {
        let device = try first(failing)
        faulting.resetCounts()
        faulting.fail(number, except: environment.isSimulated ? watching : files.union(watching), with: .inputOutput)
        do { try operation(device, failing) } catch {
          if error is Failure { throw error }
          text = "\(error)"
        }
        leaked = device?.dma.statistics.leakedBytes ?? 0
        device?.close()
      }
      let hasFailed = faulting.hasFailed, call = faulting.failedName ?? "none"
      faulting.passAll()
      // Memory whose unmap failed stays in this process, counted and out of use, and its file with it. The kernel has
      // nothing left of it all the same: closing the device unmaps everything.
      let after = try Belongings.settled(environment, others: leaked > 0 ? nil : others)
      let isClean = after.devices == 0 && after.pinnedBytes == 0 && after.objects == 0
      try expect(
        isClean && (leaked > 0 || after.others == others),
        "Left after call \(number) (\(call)) failed, \(text): \(after); others before: \(others)")
      others = after.others
      if !hasFailed { return }
    }
    throw Failure("The operation did not end after 1000 failures")
  }
}
