/// What remedies tell to do about a device: commands of iommuctl, but on a simulated machine, which exists only in its process,
/// calls of this library. There iommuctl would look for the device on the real machine.
///
/// iommuctl's own simulated machine is another for each command: who asked from a shell is told that, and no calls.
extension Host {
  /// Whether remedies are for somebody at a shell: iommuctl says so for what it runs.
  @TaskLocal package static var isAskedFromShell = false

  /// How to give a device, with its group, to vfio-pci, or to take it off its driver.
  func howTo(_ action: DriverBinding.Action, _ device: String) -> String {
    guard isSimulated else { return "`sudo iommuctl \(action.rawValue) \(device)`" }
    let way =
      Self.isAskedFromShell
      ? "that does not last, as --simulated makes a new machine for each command"
      : "`try host.perform(host.plan(.\(action.rawValue), of: PCIAddress(\"\(device)\")!))` in this process"
    guard action == .bind, let ready = readyDevice else { return way }
    return "\(way); or name \(ready), which is ready"
  }

  /// What tells why a device cannot be driven, or why none can.
  func whatTellsWhy(_ device: String? = nil) -> String {
    if !isSimulated || Self.isAskedFromShell {
      return "`iommuctl \(isSimulated ? "--simulated " : "")doctor\(device.map { " \($0)" } ?? "")`"
    }
    return "`try host.preflight(for: \(device.map { "PCIAddress(\"\($0)\")" } ?? "nil"))`"
  }

  /// A device that could be opened as things are.
  private var readyDevice: PCIAddress? { (try? devices(named: false))?.first { $0.status == .ready }?.address }
}
