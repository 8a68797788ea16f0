/// What remedies tell to do about a device: commands of iommuctl, but on a simulated machine, which exists only in its process,
/// calls of this library. There iommuctl would look for the device on the real machine.
extension Host {
  /// How to give a device, with its group, to vfio-pci, or to take it off its driver.
  func howTo(_ action: DriverBinding.Action, _ device: String) -> String {
    guard isSimulated else { return "`sudo iommuctl \(action.rawValue) \(device)`" }
    let call = "`try host.perform(host.plan(.\(action.rawValue), of: PCIAddress(\"\(device)\")!))` in this process"
    guard action == .bind, let ready = readyDevice else { return call }
    return "\(call); or name \(ready), which is ready"
  }

  /// What tells why a device cannot be driven, or why none can.
  func whatTellsWhy(_ device: String? = nil) -> String {
    if !isSimulated { return "`iommuctl doctor\(device.map { " \($0)" } ?? "")`" }
    return "`try host.preflight(for: \(device.map { "PCIAddress(\"\($0)\")" } ?? "nil"))`"
  }

  /// A device that could be opened as things are.
  private var readyDevice: PCIAddress? { (try? devices(named: false))?.first { $0.status == .ready }?.address }
}
