import IOMMU

/// Many processes that end at once, each with a device and many live mappings: what made hosts lock up when many virtual machines went
/// down together.
extension Cases {
  static let closing: [ConformanceCase] =
    ClosingProcess.End.allCases.map { end in
      ConformanceCase(.conformance, "life/\(end.rawValue)-at-once") { environment in
        let devices = try devicesForProcesses(environment)
        let complaints = try KernelComplaints(environment)
        defer { complaints.end() }
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
        try expectEqual(try complaints.lines(), [], "what the kernel says of it")
        // Busy, if anything were left.
        for device in devices { try environment.open(device).close() }
      }
    }

  /// Eight, each in a group of its own.
  private static func devicesForProcesses(_ environment: Environment) throws -> [String] {
    let known = environment.devices
    let devices =
      [known.edu, known.secondEdu, known.narrowEdu, known.nvme] + [known.igb].compactMap(\.self) + known.spareEdus
    let groups = Set(try devices.compactMap { try environment.details($0).group })
    try expectEqual(devices.count, 8, "devices, of which `run --device` adds some")
    try expectEqual(groups.count, 8, "groups of \(devices)")
    return devices
  }
}
