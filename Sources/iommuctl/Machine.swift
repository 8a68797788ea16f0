package import IOMMU
package import IOMMUSimulation

/// The machine that a subcommand looks at or drives.
struct Machine {
  let host: Host
  /// The window behind a simulated machine; nil for a real one.
  let simulated: SimulatedHost?
}

/// How `--simulated` makes its machine; tests give others.
package struct Simulation: Sendable {
  package var machine: SimulatedMachine
  /// What stands between the library and the simulated kernel: nothing, or a kernel that fails on purpose.
  package var kernel: @Sendable (any Kernel) -> any Kernel = { $0 }

  package init(machine: SimulatedMachine) { self.machine = machine }

  /// VT-d, an edu device that is ready, and an NVMe controller that the host still drives.
  package static var standard: Simulation {
    var machine = SimulatedMachine.vtd
    var disk = SimulatedDevice("0000:00:03.0", NVMeModel())
    (disk.driver, disk.hostDriver) = ("nvme", "nvme")
    machine.devices = [SimulatedDevice(edu, EduModel()), disk]
    return Simulation(machine: machine)
  }

  /// Where the edu device is.
  package static let edu = "0000:00:02.0"
}

extension Context {
  /// The machine to look at: whatever it has.
  func machineToLookAt(_ options: GlobalOptions) throws(Failure) -> Machine {
    if options.simulated { return simulatedMachine() }
    if let root = options.root {
      return try library { () throws(DMAError) in Machine(host: try .captured(at: root), simulated: nil) }
    }
    return Machine(host: .local(), simulated: nil)
  }

  /// The machine to open devices on. Throws the reason where nothing can be driven.
  func machineToDrive(_ options: GlobalOptions) throws(Failure) -> Machine {
    if options.simulated { return simulatedMachine() }
    if let root = options.root {
      throw .library(
        DMAError(
          .notSupported, "open", detail: "The tree at \(root) was captured: no device of it can be opened",
          remedy: "Run it on the machine itself, or with --simulated"))
    }
    return try library { () throws(DMAError) in Machine(host: try .system(), simulated: nil) }
  }

  func simulatedMachine() -> Machine {
    let simulated = SimulatedHost(simulation.machine)
    return Machine(host: Host(kernel: simulation.kernel(simulated.kernel)), simulated: simulated)
  }
}

extension Machine {
  /// An interface as documents name it.
  func name(_ interface: Interface) -> String {
    (host.isSimulated ? "simulated-" : "") + interface.rawValue
  }
}

extension Machine {
  /// The memory that is to be had, in bytes: what is free of that of this machine, or all that a simulated one was said to have.
  var memoryByteCount: UInt64 {
    let all = host.kernel.memoryByteCount
    guard all == MachineMemory.byteCount, let bytes = try? LiveKernel().readFile("/proc/meminfo") else { return all }
    let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
    let fields = lines.first { $0.hasPrefix("MemAvailable:") }?.split(separator: " ") ?? []
    return fields.count > 1 ? min(all, UInt64(fields[1]).map { $0 << 10 } ?? all) : all
  }
}

extension Machine {
  /// The last case: what the kernel still holds, where it can be asked.
  func checkNothingLeft(_ recorder: Recorder) {
    recorder.run("close") {
      guard let simulated else { return "the device is given back" }
      try require(simulated.isClean, "The simulated kernel still has \(simulated.kernel.census)")
      return "the device is given back; nothing is left open, mapped or pinned"
    }
  }
}
