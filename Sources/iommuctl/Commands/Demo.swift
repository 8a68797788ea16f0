import ArgumentParser
import IOMMU

/// The main job from end to end: map, let a device move bytes, unmap, and see that it is out of reach.
struct Demo: Subcommand {
  static let configuration = CommandConfiguration(
    abstract:
      "Map memory for a device, let it move bytes, and show that unmapped memory is out of its reach.",
    discussion: "Without a device it runs on the simulated machine. A device must be QEMU's edu (1234:11e8).")

  @OptionGroup var global: GlobalOptions
  @Argument(help: "An edu device that is bound to vfio-pci.") var device: PCIAddress?
  @Option(help: "Insist on an interface.") var interface: Interface?
  @Option(help: "Insist on who writes the page tables.") var translation = TranslationChoice.automatic

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let isSimulated = global.simulated || (device == nil && global.root == nil)
    let machine = isSimulated ? context.simulatedMachine() : try context.machineToDrive(global)
    let address = device ?? PCIAddress(Simulation.edu)!
    let found = try library { () throws(DMAError) in try machine.host.device(address, named: false) }
    guard EduDriver.drives(found) else {
      throw .library(
        DMAError(
          .notSupported, "demo", device: address.description,
          detail: "The demonstration moves bytes with QEMU's edu device, and this is another",
          remedy: isSimulated
            ? "`iommuctl demo` takes the simulated machine's own, \(Simulation.edu)"
            : "`iommuctl selftest \(address)` runs on any device that is bound to vfio-pci"))
    }
    if isSimulated { context.say("On a simulated machine, which exists only in this process.") }
    let recorder = Recorder(context)
    let report = try drive(address, machine, recorder, context)
    machine.checkNothingLeft(recorder)
    return report.tell(recorder, context)
  }

  /// A function of its own, so that all that it opened is gone when it returns.
  private func drive(
    _ address: PCIAddress, _ machine: Machine, _ recorder: Recorder, _ context: Context
  ) throws(Failure) -> RunReport {
    let device = try library { () throws(DMAError) in
      try Device(address.description, on: machine.host, interface: interface, translation: translation)
    }
    defer { device.close() }
    var report = RunReport(device, machine, recorder, context)
    DemoRun(device: device, machine: machine, recorder: recorder).perform(&report)
    report.count(device.dma, machine)
    return report
  }
}
