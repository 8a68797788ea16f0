import ArgumentParser
import IOMMU

/// Tests the library, the kernel and the IOMMU with one device.
struct SelfTest: Subcommand {
  static let configuration = CommandConfiguration(
    commandName: "selftest",
    abstract: "Test mapping, limits and translation with a device; with QEMU's edu, real DMA as well.",
    discussion: """
      The device must be bound to vfio-pci, and no process may use it. It is reset. Of its registers, only the \
      first word of each memory BAR is read, unless it is an edu device (1234:11e8).
      """)

  @OptionGroup var global: GlobalOptions
  @Argument(help: "A device that is bound to vfio-pci.") var device: PCIAddress
  @Option(help: "Insist on an interface.") var interface: Interface?
  @Option(help: "Insist on who writes the page tables.") var translation = TranslationChoice.automatic

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let machine = try context.machineToDrive(global)
    let found = try library { () throws(DMAError) in try machine.host.device(device, named: false) }
    let recorder = Recorder(context)
    let report = try drive(found, machine, recorder, context)
    machine.checkNothingLeft(recorder)
    return report.tell(recorder, context)
  }

  /// A function of its own, so that all that it opened is gone when it returns.
  private func drive(
    _ found: PCIDevice, _ machine: Machine, _ recorder: Recorder, _ context: Context
  ) throws(Failure) -> RunReport {
    let opened = try library { () throws(DMAError) in
      try Device(device.description, on: machine.host, interface: interface, translation: translation)
    }
    defer { opened.close() }
    var report = RunReport(opened, machine, recorder, context)
    let run = SelfTestRun(device: opened, found: found, machine: machine, recorder: recorder)
    run.testDevice()
    run.testMapping()
    run.testRefusals()
    run.testMemory()
    run.testTransfers(&report)
    report.count(opened.dma, machine)
    return report
  }
}
