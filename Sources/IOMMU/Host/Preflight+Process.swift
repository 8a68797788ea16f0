// What this process may: open nodes, pin memory.
extension PreflightFacts {
  func checkPermission(_ check: inout CheckDraft) {
    guard !host.isCaptured else {
      return check.conclude(.notApplicable, "A captured tree has no nodes that could be opened.")
    }
    guard let device else {
      let nodes = ["/dev/iommu", "/dev/vfio/vfio"].map { access($0, &check) }
      return concludeAccess(
        &check, nodes.contains(.granted) ? .granted : nodes[0], "the nodes that all devices share")
    }
    guard device.isBoundToVFIO else {
      return check.conclude(.notApplicable, "The device has nodes once it is bound to VFIO.")
    }
    var ways: [Access] = []
    if let cdev = device.cdev {
      ways.append(max(access("/dev/iommu", &check), access("/dev/vfio/devices/\(cdev)", &check)))
    }
    if let group, !group.isNoIOMMU {
      ways.append(max(access("/dev/vfio/vfio", &check), access("/dev/vfio/\(group.id)", &check)))
    }
    concludeAccess(&check, ways.min() ?? .absent, "the device's nodes")
  }

  /// In the order in which one is worse than another.
  private enum Access: Int, Comparable {
    case granted, denied, absent, unknown
    static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  }

  private func access(_ node: String, _ check: inout CheckDraft) -> Access {
    guard let status = try? kernel.status(node) else {
      return check.exists(node) == false ? .absent : .unknown
    }
    let mode = String(status.mode & 0o777, radix: 8)
    let owner = "mode \(mode), uid \(status.owner), gid \(status.group)"
    do {
      try kernel.checkAccess(node, write: true)
      check.note(node, "\(owner): may be opened")
      return .granted
    } catch {
      check.note(node, "\(owner): \(error)")
      return error == .accessDenied || error == .notPermitted ? .denied : .unknown
    }
  }

  private func concludeAccess(_ check: inout CheckDraft, _ access: Access, _ what: String) {
    switch access {
    case .granted: check.conclude(.ok, "This process may open \(what).")
    case .denied:
      check.conclude(
        .fail, "This process may not open \(what).",
        remedy: "Install the rules in udev/ of this package and join the group vfio, or run it as root."
      )
    case .absent:
      check.conclude(
        .fail, "There are no nodes to open: \(what) are not in /dev.",
        remedy: "`sudo modprobe vfio-pci`; in a container, pass /dev/vfio and /dev/iommu in.")
    case .unknown: check.conclude(.unknown, "Whether this process may open \(what) could not be told.")
    }
  }

  // MARK: - Memory

  func checkMemoryLock(_ check: inout CheckDraft) {
    guard !host.isCaptured else {
      return check.conclude(
        .notApplicable, "A captured tree does not tell the limit of the process that will run.")
    }
    let limit = kernel.memoryLockLimit(), isExempt = kernel.hasCapability(14)
    check.note("RLIMIT_MEMLOCK", limit == .max ? "unlimited" : Self.bytes(limit))
    check.note("CAP_IPC_LOCK", isExempt ? "held" : "not held")
    for key in ["VmLck", "VmPin"] { noteStatus(key, &check) }
    if isExempt || limit == .max {
      return check.conclude(.ok, "Nothing limits how much memory this process may pin for devices.")
    }
    let counting =
      "iommufd counts what all processes of the user have pinned, type1 what this process has pinned and locked."
    let remedy =
      "Raise it by the files in udev/ of this package: for logins of group vfio, limits.d/60-vfio-iommu.conf in "
      + "/etc/security/limits.d (`@vfio - memlock 4194304`), and log in again; for what a desktop session or "
      + "`systemctl --user` starts, systemd/user@.service.d/vfio-memlock.conf, and for a service "
      + "systemd/vfio-memlock.conf in /etc/systemd/system/NAME.service.d (`LimitMEMLOCK=4G`), with "
      + "`sudo systemctl daemon-reload`; for this shell alone, `sudo prlimit --pid $$ --memlock=unlimited`."
    let means = "This process may pin \(Self.bytes(limit)) for devices; \(counting)"
    if limit < 1 << 16 { return check.conclude(.fail, means, remedy: remedy) }
    if limit < 64 << 20 { return check.conclude(.warn, means, remedy: remedy) }
    check.conclude(.ok, means)
  }

  private func noteStatus(_ key: String, _ check: inout CheckDraft) {
    var reader = FileReader(kernel)
    guard let text = reader.text("/proc/self/status", optional: true) else { return }
    for line in text.split(separator: "\n") where line.hasPrefix("\(key):") {
      check.note(
        "/proc/self/status", line.split(whereSeparator: { $0 == " " || $0 == "\t" }).joined(separator: " "))
    }
  }

  private static func bytes(_ count: UInt64) -> String {
    if count >= 1 << 30, count % (1 << 30) == 0 { return "\(count >> 30) GiB" }
    if count >= 1 << 20, count % (1 << 20) == 0 { return "\(count >> 20) MiB" }
    return count >= 1 << 10 && count % (1 << 10) == 0 ? "\(count >> 10) KiB" : "\(count) bytes"
  }
}
