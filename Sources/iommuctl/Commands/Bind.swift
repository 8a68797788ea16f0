import ArgumentParser
import IOMMU

/// Gives a device and its group to VFIO.
struct Bind: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Give a device, with its whole IOMMU group, to vfio-pci.",
    discussion:
      "The former drivers are remembered for restore; if a write fails, all before it are taken back.")

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
    if !dryRun { try library { () throws(DMAError) in try machine.host.perform(plan) } }
    if context.isJSON {
      context.document([
        ("device", .string(device.description)),
        (
          "writes",
          .array(plan.writes.map { .object([("path", .string($0.path)), ("value", .string($0.value))]) })
        ),
        ("done", .bool(!dryRun)), ("skipped", JSON(plan.skipped.map(\.description))),
        ("warnings", JSON(plan.warnings)),
      ])
    } else {
      tell(plan, context)
    }
    return .fine
  }

  private func tell(_ plan: DriverBinding, _ context: Context) {
    for write in plan.writes {
      context.say("\(dryRun ? "would write" : "wrote") \(write.value.debugDescription) to \(write.path)")
    }
    for member in plan.skipped { context.say("left as it is: \(member)") }
    if plan.writes.isEmpty { context.say("nothing to do: \(device) is as wanted") }
  }
}
