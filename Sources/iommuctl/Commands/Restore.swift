import ArgumentParser
import IOMMU

/// Gives a device and its group their former drivers back.
struct Restore: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Give a device, with its whole group, the drivers back that it had before bind or unbind.")

  @OptionGroup var global: GlobalOptions
  @OptionGroup var binding: BindingOptions

  func perform(_ context: Context) throws(Failure) -> Outcome {
    try binding.perform(.restore, global, context)
  }
}
