extension Host {
  /// Does what was planned: all of it, or, when a write fails, none, since what was written is taken back in reverse.
  ///
  /// The former drivers are kept in `/run/iommuctl` before the first write, so that another process can restore them.
  ///
  /// - Throws: ``DMAError/Code-swift.struct/permission``; ``DMAError/Code-swift.struct/busy`` when a process has a
  ///   device of the group open, since the kernel would wait for it without end;
  ///   ``DMAError/Code-swift.struct/notBound`` when the driver did not take the device. The detail names the write and
  ///   whatever could not be taken back.
  public func perform(_ plan: DriverBinding) throws(DMAError) {
    guard !isCaptured else {
      throw DMAError(
        .notSupported, plan.action.rawValue, device: plan.device.description,
        detail: "The tree was captured: writing to it changes no device",
        remedy: "Run it on the machine itself")
    }
    try refuseOpenGroup(plan)
    let remembered = try remember(plan)
    var done: [DriverBinding.Step] = []
    for step in plan.steps {
      do throws(Errno) {
        try kernel.writeFile(step.write.path, step.write.value)
        done.append(step)
        if let driver = step.driver { try requireDriver(driver, step.device) }
      } catch {
        let left = undo(done)
        // What could not be taken back keeps its memory, for a later restore.
        for (device, text) in remembered where !left.contains(where: { $0.device == device }) {
          forget(device, leaving: text)
        }
        throw failure(plan, step, error, left)
      }
    }
    for device in plan.forgets { forget(device) }
  }

  private func refuseOpenGroup(_ plan: DriverBinding) throws(DMAError) {
    guard let node = plan.groupNode else { return }
    do {
      kernel.close(try kernel.open(node))
    } catch {
      guard error == .busy else { return }  // No such node, or no leave to open it: the writes will tell.
      throw DMAError(
        .busy, plan.action.rawValue, errno: error, device: plan.device.description,
        detail: "A process has a device of the group open by VFIO",
        remedy: "End it: `fuser -v /dev/vfio/* /dev/vfio/devices/*`")
    }
  }

  /// Returns the devices that are remembered anew, each with the text that stood there before.
  private func remember(_ plan: DriverBinding) throws(DMAError) -> [(PCIAddress, String?)] {
    var stored: [(PCIAddress, String?)] = []
    for former in plan.remembers {
      let path = FormerDriver.path(of: former.device)
      var reader = FileReader(kernel)
      let text = reader.text(path, optional: true)
      // What an earlier action remembered stands, unless the device has got a driver of the host's since.
      let isHosts = former.driver.map { !VFIODriver.drives($0) } ?? false
      if !isHosts, let text, FormerDriver(former.device, parsing: text) != nil { continue }
      do { try kernel.storeFile(path, former.text) } catch {
        if error == .notImplemented { continue }  // A kernel that keeps no files, such as a simulated one.
        for (device, text) in stored { forget(device, leaving: text) }
        let isDenied = error == .accessDenied || error == .notPermitted
        throw DMAError(
          isDenied ? .permission : .system, "store \(path)", errno: error, device: former.device.description,
          remedy: isDenied ? "Run it as root" : nil)
      }
      stored.append((former.device, text))
    }
    return stored
  }

  private func forget(_ device: PCIAddress, leaving text: String? = nil) {
    let path = FormerDriver.path(of: device)
    if let text { try? kernel.storeFile(path, text + "\n") } else { try? kernel.removeFile(path) }
  }

  private func requireDriver(_ driver: String, _ device: PCIAddress) throws(Errno) {
    let target = (try? kernel.readLink("\(PCIDevice.path(of: device))/driver")).flatMap(Field.lastComponent)
    guard target == driver else { throw .noDevice }
  }

  /// Takes back in reverse; returns the steps that could not be.
  private func undo(_ done: [DriverBinding.Step]) -> [DriverBinding.Step] {
    done.reversed().filter { step in
      do throws(Errno) { try kernel.writeFile(step.undo.path, step.undo.value) } catch {
        // A probe that bound nothing leaves nothing to unbind.
        return !(step.driver != nil && (try? requireDriver(step.driver ?? "", step.device)) == nil)
      }
      return false
    }
  }

  private func failure(
    _ plan: DriverBinding, _ step: DriverBinding.Step, _ error: Errno, _ left: [DriverBinding.Step]
  ) -> DMAError {
    var detail = "Writing \(step.write.value.debugDescription) to \(step.write.path) failed"
    if left.isEmpty {
      detail += "; what was written before is taken back"
    } else {
      let paths = left.map { "\($0.undo.value.debugDescription) to \($0.undo.path)" }
      detail += "; not taken back: \(paths.joined(separator: ", "))"
    }
    let code: DMAError.Code, remedy: String?
    switch error {
    case .accessDenied, .notPermitted, .readOnly:
      (code, remedy) = (.permission, "Run it as root, with sysfs writable")
    case .noDevice where step.driver != nil:
      (code, remedy) = (
        .notBound, "The kernel's log says why \(step.driver ?? "the driver") did not take the device"
      )
    case .noDevice, .noSuchAddressOrDevice:
      (code, remedy) = (.gone, "Look at the device again: it or its driver changed")
    case .noEntry: (code, remedy) = (.notSupported, "Load the driver's module: `modprobe`, then try again")
    case .busy: (code, remedy) = (.busy, "End what uses the device, then try again")
    default: (code, remedy) = (.system, nil)
    }
    return DMAError(
      code, plan.action.rawValue, errno: error, device: step.device.description, detail: detail,
      remedy: remedy)
  }
}
