import IOMMU

/// Many processes that end at once, each with a device and many live mappings: what made hosts lock up when many virtual machines went
/// down together.
extension Cases {
  static let closing: [ConformanceCase] =
    ClosingProcess.End.allCases.map { end in
      ConformanceCase(.conformance, "life/\(end.rawValue)-at-once") { environment in
        let devices = devicesForProcesses(environment), log = try KernelComplaints(environment)
        // Twice, so that there are eight processes and more.
        for _ in 0..<2 {
          let children = try devices.map { device in
            try Child(
              ClosingProcess(
                device, interface: environment.interface, translation: environment.translation,
                mapCount: Int(environment.calls(2000, process: 20_000)), end: end
              ).arguments)
          }
          let ready = children.map { $0.waitUntilReady() }
          for child in children { child.letGo() }
          let statuses = children.map { $0.wait() }
          try expectEqual(ready, devices.map { _ in true }, "whether each of \(devices) was ready")
          try expectEqual(statuses, devices.map { _ in 0 }, "how each of \(devices) ended")
        }
        try expectEqual(try log.lines(), [], "what the kernel says of it")
        // Busy, if anything were left.
        for device in devices { try environment.open(device).close() }
      }
    }

  private static func devicesForProcesses(_ environment: Environment) -> [String] {
    let devices = environment.devices
    return [devices.edu, devices.secondEdu, devices.narrowEdu, devices.nvme] + [devices.igb].compactMap(\.self)
  }
}

/// Lines of the kernel's log that something went wrong in the kernel itself, or took it too long.
struct KernelComplaints {
  private let kernel: any Kernel
  private let first: UInt64
  private static let signs = [
    "soft lockup", "LOCKUP", "rcu: INFO", "WARNING:", "BUG:", "Oops", "blocked for more than",
  ]

  /// Looks at what comes from now on.
  init(_ environment: Environment) throws {
    kernel = environment.kernel
    first = try kernel.kernelLog(from: 0).last.map { $0.sequence + 1 } ?? 0
  }

  func lines() throws -> [String] {
    try kernel.kernelLog(from: first).map(\.text).filter { line in Self.signs.contains { line.contains($0) } }
  }
}
