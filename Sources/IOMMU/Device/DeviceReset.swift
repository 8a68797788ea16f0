/// Resetting a device.
///
/// What a reset is, the kernel chooses: function-level reset, Advanced Features, power state, a slot or bus of its
/// own. It saves config space before and restores it after, with interrupts and the command register as they were.
package struct DeviceReset: Sendable {
  private let handle: DeviceHandle
  /// Whether the kernel knows a reset for the device.
  package let isSupported: Bool

  /// `info` is what the kernel said of the device.
  package init(_ handle: DeviceHandle, info: VFIODeviceInfo) {
    (self.handle, isSupported) = (handle, info.canReset)
  }

  /// Resets the device, and again while the kernel answers that another has it locked, at most for a second.
  ///
  /// Throws ``DMAError/Code/noSuchResource`` with the reason when there is no reset. The corresponding ioctl is
  /// `VFIO_DEVICE_RESET`.
  package func perform(_ config: ConfigSpace?) throws(DMAError) {
    guard isSupported else { throw unsupported(config) }
    var pause = Duration.milliseconds(1)
    for _ in 0..<Limits.resetTries - 1 {
      do throws(DMAError) {
        return try reset()
      } catch {
        guard error.errno == .wouldBlock else { throw error }
      }
      handle.kernel.sleep(pause)
      pause = min(pause * 2, .milliseconds(250))
    }
    do throws(DMAError) { try reset() } catch {
      var error = error
      if error.errno == .wouldBlock { error.code = .busy }
      throw error
    }
  }

  private func reset() throws(DMAError) {
    let kernel = handle.kernel
    try handle.use("VFIO_DEVICE_RESET") { descriptor throws(Errno) in try kernel.vfioReset(descriptor) }
  }

  private func unsupported(_ config: ConfigSpace?) -> DMAError {
    let methods = config.flatMap { try? $0.resetMethods() }
    var detail = "The kernel knows no reset of this device alone"
    if let methods {
      detail +=
        methods.isEmpty
        ? ": it has neither function-level reset nor a reset by power state"
        : ", though it offers \(methods.names.joined(separator: " and "))"
    }
    return DMAError(
      .noSuchResource, "VFIO_DEVICE_RESET", device: handle.name, detail: detail,
      remedy:
        "Bring the device to rest by its own registers; reset_method in its sysfs directory lists what the kernel tries"
    )
  }
}

extension ConfigSpace.ResetMethods {
  fileprivate var names: [String] {
    [
      contains(.functionLevel) ? "function-level reset" : nil,
      contains(.advancedFeatures) ? "reset by Advanced Features" : nil,
      contains(.powerManagement) ? "reset by power state" : nil,
    ].compactMap(\.self)
  }
}

extension Limits {
  /// A reset that finds the device locked is tried so often: 1 ms, 2 ms … 250 ms apart, a second in all.
  package static let resetTries = 11
}
