/// Errors of opening and attaching, with what each errno means there and what to do.
///
/// The reference is the errno contract of `iommufd.h` and of VFIO (`Documentation/driver-api/vfio.rst`).
extension DMAError {
  /// `open` of a node failed.
  static func opening(_ path: String, _ errno: Errno, _ kernel: any Kernel) -> DMAError {
    var error = DMAError(.system, "open", errno: errno, device: path)
    switch errno {
    case .accessDenied, .notPermitted:
      error.code = .permission
      let user = kernel.effectiveUser()
      if let status = try? kernel.status(path) {
        error.detail =
          "Its mode is 0\(String(status.mode, radix: 8)), owner \(status.owner), group \(status.group); this is user \(user)"
      }
      error.remedy = "Install the rules of udev/ and join their group, or run as root"
    case .noEntry, .noDevice, .noSuchAddressOrDevice:
      error.code = path == KernelOwnedIOAS.path || path == KernelOwnedContainer.path ? .notSupported : .noSuchDevice
      error.remedy = missingNode(path, isSimulated: kernel.isSimulated)
    case .busy:
      error.code = .busy
      error.detail = "Another process, or another device of this one, has the node or its group open"
      error.remedy = "Close it there; a mapped BAR keeps a node open as well"
    case .tooManyDescriptors: error.remedy = "Raise RLIMIT_NOFILE"
    default: break
    }
    return error
  }

  private static func missingNode(_ path: String, isSimulated: Bool) -> String {
    switch path {
    case KernelOwnedIOAS.path:
      isSimulated ? "Use the type1 interface" : "Load iommufd (CONFIG_IOMMUFD), or use the type1 interface"
    case _ where !isSimulated:
      "Load vfio-pci (sudo modprobe vfio-pci) and bind the device to it: sudo iommuctl bind ADDRESS"
    case KernelOwnedContainer.path: "Use the iommufd interface"
    default: "Look at the device again: the simulated machine has unbound or unplugged it"
    }
  }

  /// Binding a device to an iommufd, or getting it from its group, failed.
  static func binding(
    _ operation: String, _ errno: Errno, _ target: AttachTarget, _ kernel: any Kernel
  ) -> DMAError {
    let name = target.address.description, host = Host(kernel: kernel)
    switch errno {
    case .notPermitted: return .unsafeInterrupts(operation, target, kernel)
    case .accessDenied:
      return DMAError(
        .virtualFunctionToken, operation, errno: errno, device: name,
        detail: target.token == nil ? "The virtual function wants a token" : "The token is not the physical function's",
        remedy: "Pass the UUID that the physical function's driver has set")
    case .invalidArgument where target.token != nil:
      return DMAError(
        .virtualFunctionToken, operation, errno: errno, device: name,
        detail: "The device takes no token, or is open without one", remedy: "Leave the token out")
    case .invalidArgument:
      return DMAError(
        .incompatibleDevice, operation, errno: errno, device: name,
        detail:
          "Its DMA is not coherent, or firmware asked for direct-mapped regions (RMRR, RMR), or it is bound already",
        remedy: "\(host.whatTellsWhy(name)) lists reserved regions of type direct")
    case .busy:
      return DMAError(
        .groupNotViable, operation, errno: errno, device: name,
        detail: "The group is owned by a host driver or another process",
        remedy: "\(host.whatTellsWhy(name)) names the device and driver; bind the whole group to vfio-pci")
    case .noDevice, .noSuchAddressOrDevice, .noEntry:
      return DMAError(
        .noSuchDevice, operation, errno: errno, device: name, remedy: "Bind it to vfio-pci: \(host.howTo(.bind, name))")
    case .notTypewriter:
      return DMAError(
        .notSupported, operation, errno: errno, device: name, detail: "The kernel's VFIO has no such call")
    default: return DMAError(.system, operation, errno: errno, device: name)
    }
  }

  /// Attaching to a page table failed.
  static func attaching(
    _ errno: Errno, _ target: AttachTarget, _ kernel: any Kernel,
    _ operation: String = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"
  ) -> DMAError {
    let name = target.address.description
    switch errno {
    case .busy:
      return DMAError(
        .busy, operation, errno: errno, device: name,
        detail: "Another owner has the device or its group, or it is being reset",
        remedy: "Close it there and try again")
    case .invalidArgument:
      return DMAError(
        .incompatibleDevice, operation, errno: errno, device: name,
        detail: "The IOMMU refuses the device in this domain",
        remedy: "\(Host(kernel: kernel).whatTellsWhy(name)) tells why")
    case .addressInUse, .exists:
      return DMAError(
        .reserved, operation, errno: errno, device: name,
        detail: "A mapping of the domain lies in a reserved region of the device", remedy: "Attach before mapping")
    case .notPermitted: return .unsafeInterrupts(operation, target, kernel)
    case .noDevice: return DMAError(.gone, operation, errno: errno, device: name)
    default: return DMAError(.system, operation, errno: errno, device: name)
    }
  }

  /// The platform does not keep the device's interrupts apart.
  static func unsafeInterrupts(
    _ operation: String, _ target: AttachTarget, _ kernel: any Kernel
  ) -> DMAError {
    DMAError(
      .unsafeInterrupts, operation, errno: .notPermitted, device: target.address.description,
      detail: "The platform does not isolate interrupts (no interrupt remapping, no ITS)",
      remedy: kernel.isSimulated
        ? "Give the SimulatedMachine isolatesInterrupts"
        : "Enable interrupt remapping in firmware and kernel (intremap=on). iommuctl doctor tells of the "
          + "module option that goes without, and of its risk")
  }
}

/// A virtual function's token: a UUID shared with the physical function's driver.
package enum VirtualFunctionToken {
  /// The 16 bytes of `8-4-4-4-12` hexadecimal digits; nil for any other text.
  package static func bytes(_ text: String) -> [UInt8]? {
    let groups = text.split(separator: "-", omittingEmptySubsequences: false)
    guard groups.map(\.utf8.count) == [8, 4, 4, 4, 12] else { return nil }
    let digits = groups.joined().utf8.map { Character(UnicodeScalar($0)).hexDigitValue }
    guard digits.allSatisfy({ $0 != nil }) else { return nil }
    return stride(from: 0, to: 32, by: 2).map { UInt8(digits[$0]! << 4 | digits[$0 + 1]!) }
  }

  /// The usual text form of 16 bytes.
  package static func text(_ bytes: [UInt8]) -> String {
    var text = ""
    for (index, byte) in bytes.enumerated() {
      if [4, 6, 8, 10].contains(index) { text += "-" }
      text += (byte < 16 ? "0" : "") + String(byte, radix: 16)
    }
    return text
  }
}
