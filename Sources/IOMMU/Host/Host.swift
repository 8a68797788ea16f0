/// A machine whose devices can be driven: this one, or a simulated one.
///
/// Every other type is reached from here or takes a host; there is no global state but ``system()``'s.
public final class Host: Sendable {
  /// Whom the library asks; see ``Kernel``.
  package let kernel: any Kernel

  /// Whether its files were captured elsewhere: they tell of another machine, and nothing can be opened.
  public let isCaptured: Bool

  /// Makes a host over any kernel.
  package init(kernel: any Kernel, isCaptured: Bool = false) {
    (self.kernel, self.isCaptured) = (kernel, isCaptured)
  }

  /// Whether this machine exists only in this process.
  public var isSimulated: Bool { kernel.isSimulated }
}

/// How the process talks to VFIO.
public enum Interface: String, Hashable, Sendable, CaseIterable {
  /// The device's own node bound to `/dev/iommu`.
  case iommufd
  /// The device's group in a container with the type1 (version 2) back end.
  case type1
}
