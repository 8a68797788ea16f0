import ArgumentParser
import IOMMU

/// Gives a device and its group to VFIO.
struct Bind: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Give a device, with its whole IOMMU group, to vfio-pci.",
    discussion: """
      It lasts until restore or a reboot. The former drivers are remembered for restore; if a write fails, all before \
      it are taken back.
      """)

  @OptionGroup var global: GlobalOptions
  @OptionGroup var binding: BindingOptions

  func perform(_ context: Context) throws(Failure) -> Outcome {
    try binding.perform(.bind, global, context)
  }
}

/// What `bind`, `unbind` and `restore` have in common.
struct BindingOptions: ParsableArguments {
  @Argument(help: "The device, such as 0000:03:00.0 or 3:0.0.") var device: PCIAddress
  @Flag(help: "Print what would be written, and write nothing.") var dryRun = false
  @Flag(help: "Go on with a device that the host needs.") var force = false

  func perform(
    _ action: DriverBinding.Action, _ global: GlobalOptions, _ context: Context
  ) throws(Failure) -> Outcome {
    let machine = try context.machineToLookAt(global)
    let plan = try library { () throws(DMAError) in
      try machine.host.plan(action, of: device, force: force)
    }
    // Before the first write, so that it is on the screen when the console goes with the device.
    if !context.isJSON { for warning in plan.warnings { context.console.err("warning: \(warning)\n") } }
    let before = dryRun ? [] : drivers(machine.host)
    if !dryRun { try library { () throws(DMAError) in try machine.host.perform(plan) } }
    if context.isJSON {
      context.document([
        ("device", .string(device.description)),
        (
          "writes",
          .array(plan.writes.map { .object([("path", .string($0.path)), ("value", .string($0.value))]) })
        ),
        ("done", .bool(!dryRun)), ("simulated", .bool(machine.host.isSimulated)),
        ("skipped", JSON(plan.skipped.map(\.description))), ("warnings", JSON(plan.warnings)),
      ])
    } else {
      tell(plan, context)
      if !dryRun, !plan.writes.isEmpty { tellResult(action, before, machine.host, context) }
    }
    return .fine
  }

  /// The drivers of the device's group, in the group's order; nil stands for none.
  private func drivers(_ host: Host) -> [(address: PCIAddress, driver: String?)] {
    guard let target = try? host.device(device, named: false) else { return [] }
    guard let group = target.group.flatMap({ try? host.group($0) }) else { return [(device, target.driver)] }
    return group.members.compactMap { member in member.address.map { ($0, member.driver) } }
  }

  /// What came of the writes, as the kernel shows it now.
  private func tellResult(
    _ action: DriverBinding.Action, _ before: [(address: PCIAddress, driver: String?)], _ host: Host,
    _ context: Context
  ) {
    for (address, driver) in drivers(host) {
      guard let former = before.first(where: { $0.address == address }), former.driver != driver else { continue }
      let now = driver.map { "driver \($0)" } ?? "no driver"
      context.say("\(address): \(now) (\(former.driver.map { "was \($0)" } ?? "had none"))")
    }
    if host.isSimulated {
      context.say("simulated machine: nothing on this machine was changed")
    } else if action != .restore {
      context.say("to undo: iommuctl restore \(device)")
    }
  }

  private func tell(_ plan: DriverBinding, _ context: Context) {
    for write in plan.writes {
      context.say("\(dryRun ? "would write" : "wrote") \(write.value.debugDescription) to \(write.path)")
    }
    for member in plan.skipped { context.say("left as it is: \(member)") }
    if plan.writes.isEmpty { context.say("nothing to do: \(device) is as wanted") }
  }
}
