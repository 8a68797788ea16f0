extension Host {
  private static let live = LiveKernel()

  /// This machine.
  ///
  /// ```swift
  /// let host = try Host.system()
  /// let anywhere = Host.system(or: .simulated())        // falls back, because it says so
  /// ```
  ///
  /// - Throws: When nothing can be driven here: ``DMAError/Code-swift.struct/corruptTree`` without sysfs,
  ///   ``DMAError/Code-swift.struct/noIOMMU`` without an IOMMU in use,
  ///   ``DMAError/Code-swift.struct/notSupported`` without VFIO's nodes. The remedy says what to do; more is in
  ///   ``preflight(for:)``.
  public static func system() throws(DMAError) -> Host {
    let host = Host(kernel: live)
    try host.requireDrivable()
    return host
  }

  /// This machine, or another host where nothing can be driven here.
  ///
  /// Which one it is shows in ``isSimulated``, and in what a device says of its interface.
  ///
  /// - Parameter fallback: The other host, made only when it is needed.
  public static func system(or fallback: @autoclosure () -> Host) -> Host {
    do { return try system() } catch { return fallback() }
  }

  /// This machine whatever it has, to look at: for programs that list and explain.
  public static func local() -> Host { Host(kernel: live) }

  /// A machine whose files were captured below a directory, to look at: nothing of it can be opened or bound.
  ///
  /// - Parameter root: A directory that holds `sys/`, and as far as captured `proc/` and `dev/`.
  /// - Throws: ``DMAError/Code-swift.struct/noSuchTree`` when there is no such directory,
  ///   ``DMAError/Code-swift.struct/permission`` when this user may not read it,
  ///   ``DMAError/Code-swift.struct/corruptTree`` when it holds no `sys/`; ``DMAError/Code-swift.struct/system``.
  public static func captured(at root: String) throws(DMAError) -> Host {
    try captured(at: root, LiveKernel(root: root))
  }

  /// The same by a kernel that has the tree's files.
  package static func captured(at root: String, _ kernel: any Kernel) throws(DMAError) -> Host {
    let names: [String]
    do throws(Errno) { names = try kernel.listDirectory("/sys") } catch { throw noTree(root, kernel, error) }
    if names.isEmpty { throw noTree(root, kernel, nil) }
    return Host(kernel: kernel, isCaptured: true)
  }

  /// Why a directory cannot be looked at as a captured tree; no errno stands for a `sys/` with nothing in it.
  private static func noTree(_ root: String, _ kernel: any Kernel, _ errno: Errno?) -> DMAError {
    var error = DMAError(
      .corruptTree, "read \(root)/sys", errno: errno, remedy: "Name a directory that holds sys/, proc/ and dev/")
    switch errno {
    case nil: error.detail = "No tree was captured at \(root): its sys/ is empty"
    case .accessDenied?, .notPermitted?:
      error.code = .permission
      error.detail = "User \(kernel.effectiveUser()) may not read it"
      error.remedy = "Give this user leave to read the tree, or run as root"
    case .noEntry? where (try? kernel.status("/")) == nil:
      error.code = .noSuchTree
      error.detail = "There is no directory \(root)"
    case .noEntry?: error.detail = "No tree was captured at \(root): it holds no sys/"
    case .notDirectory?: error.detail = "It is no directory"
    default:
      error.code = .system
      error.remedy = nil
    }
    return error
  }

  /// Throws the first reason why no device at all can be driven.
  package func requireDrivable() throws(DMAError) {
    try requireSysfs()
    var reader = FileReader(kernel)
    if reader.names(SysPath.groups, optional: true).isEmpty {
      let check = try preflight(for: nil)[.iommuEnabled]
      throw DMAError(
        .noIOMMU, "Host.system", detail: Self.clause(check.meaning), remedy: check.remedy.map(Self.clause))
    }
    let type1 = reader.exists("/dev/vfio/vfio") == true
    let iommufd = reader.exists("/dev/iommu") == true && reader.exists("/dev/vfio/devices") == true
    guard !type1, !iommufd else { return }
    let check = try preflight(for: nil)[.modules]
    throw DMAError(
      .notSupported, "Host.system",
      detail:
        "There is neither /dev/vfio/vfio nor /dev/iommu with /dev/vfio/devices: no device is bound to VFIO",
      remedy: check.remedy.map(Self.clause)
        ?? "Bind a device: `sudo iommuctl bind ADDRESS`; in a container, pass /dev/vfio and /dev/iommu in")
  }

  /// A sentence as part of an error's description, which sets the full stops itself.
  private static func clause(_ sentence: String) -> String {
    sentence.hasSuffix(".") ? String(sentence.dropLast()) : sentence
  }
}
