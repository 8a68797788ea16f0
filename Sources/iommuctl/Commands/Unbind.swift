import ArgumentParser
import IOMMU

/// Takes a device off its driver.
struct Unbind: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Take a device off its driver; off VFIO, the group's other devices as well.")

  @OptionGroup var global: GlobalOptions
  @OptionGroup var binding: BindingOptions

  func perform(_ context: Context) throws(Failure) -> Outcome {
    try binding.perform(.unbind, global, context)
  }
}
