/// Why stage 1 cannot be the process's: a step of the set-up and what the kernel answered, or a reason.
struct NestingRefusal: Error {
  var operation: String
  var errno: Errno?
  var reason: String

  init(_ operation: String, _ errno: Errno, _ reason: String? = nil) {
    (self.operation, self.errno) = (operation, errno)
    self.reason = reason ?? "\(operation) answers \(errno.name)"
  }

  init(_ reason: String) { (operation, errno, self.reason) = ("open", nil, reason) }

  /// Whether the kernel's tables would not do either.
  var isFinal = false

  /// Whether a vIOMMU or its table is of another physical SMMU than the device.
  var isOfAnotherUnit: Bool {
    errno == .invalidArgument && (operation == "IOMMU_VDEVICE_ALLOC" || operation == Self.attach)
  }
  static let attach = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"

  /// As an error of a device that was to join a domain, whose tables are the process's already.
  func joining(_ target: AttachTarget, _ kernel: any Kernel) -> DMAError {
    guard let errno else { return error(target.address.description) }
    var error = DMAError.attaching(errno, target, kernel, operation)
    if error.detail == nil { error.detail = reason }
    return error
  }

  /// As an error for whoever asked for the process's tables.
  func error(_ device: String) -> DMAError {
    DMAError(
      errno == .noMemory ? .outOfMemory : .notSupported, operation, errno: errno, device: device,
      detail: "The page tables cannot be the process's. \(reason)",
      remedy: "Leave the translation to the library, or ask for the kernel's")
  }
}
