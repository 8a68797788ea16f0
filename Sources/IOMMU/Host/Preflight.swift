/// Why a device, or a machine, can or cannot be driven through VFIO: what `iommuctl doctor` shows.
///
/// Each check says what was read where, what it means, and what to do. Nothing is changed, and nothing is opened.
public struct Preflight: Hashable, Sendable {
  /// The device that was looked at, nil for the machine alone.
  public let device: PCIAddress?
  /// One check for each ``ID``, in that order.
  public let checks: [Check]

  /// The worst of all checks: fail before warn before unknown before ok.
  public var verdict: Verdict {
    for verdict in [Verdict.fail, .warn, .unknown] where checks.contains(where: { $0.verdict == verdict }) {
      return verdict
    }
    return .ok
  }

  /// The check with this id.
  public subscript(id: ID) -> Check { checks[ID.allCases.firstIndex(of: id)!] }

  /// What a check came to.
  public enum Verdict: String, Hashable, Sendable, CaseIterable {
    /// Nothing to do.
    case ok
    /// It works, with a limit or a risk that the user should know.
    case warn
    /// It keeps the device from being driven.
    case fail
    /// What decides it could not be read: the evidence says which path.
    case unknown
    /// It says nothing here: about a device when none was named, or an interface that is not used.
    case notApplicable = "not-applicable"
  }

  /// What a check is about; the raw value is its name in JSON.
  public enum ID: String, Hashable, Sendable, CaseIterable {
    /// Whether the kernel has an IOMMU in use, and for this device.
    case iommuEnabled = "iommu-enabled"
    /// Whether the IOMMU keeps a device from sending interrupts that it was not given.
    case interruptRemapping = "interrupt-remapping"
    /// Whether another device of the group belongs to the host.
    case groupViable = "group-viable"
    /// Whether the device is bound to vfio-pci or a variant of it.
    case driver
    /// Whether this process may open the nodes.
    case permission
    /// How much memory this process may pin.
    case memlock
    /// Whether the kernel has iommufd.
    case iommufd
    /// Whether the device has a node of its own.
    case cdev
    /// How many mappings type1 allows.
    case type1Entries = "type1-entries"
    /// Whether firmware claims addresses of the device.
    case reservedRegions = "reserved-regions"
    /// Whether VFIO's modules are there.
    case modules
  }

  /// One check.
  public struct Check: Hashable, Sendable, Identifiable {
    /// What it is about.
    public let id: ID
    /// What it came to.
    public let verdict: Verdict
    /// What was read where, in the order read.
    public let evidence: [Evidence]
    /// One or two sentences: what it means.
    public let meaning: String
    /// What to do; nil when there is nothing to do.
    public let remedy: String?
    /// The device that is to blame and its driver, such as `0000:03:00.1 (xhci_hcd)`; nil when none is.
    public let culprit: String?
  }

  /// What was read somewhere.
  public struct Evidence: Hashable, Sendable {
    /// A file, a directory, a node or a limit.
    public let path: String
    /// Its content on one line, `not there`, or `unreadable` with the kernel's answer.
    public let value: String

    /// Evidence of a path and what was there.
    public init(path: String, value: String) { (self.path, self.value) = (path, value) }
  }
}

extension Host {
  /// Looks at all that decides whether a device can be driven; without a device, at the machine.
  ///
  /// It needs no privilege: what cannot be read makes its check unknown. Some 30 small files; O(devices of the group).
  ///
  /// - Parameter address: The device, nil for the machine.
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice``; ``DMAError/Code-swift.struct/corruptTree`` when there is no
  ///   sysfs.
  public func preflight(for address: PCIAddress?) throws(DMAError) -> Preflight {
    try requireSysfs()
    var facts = PreflightFacts(host: self)
    if let address {
      let device = try device(address, named: false)
      facts.device = device
      facts.group = device.group.map { readGroup($0) }
    }
    let checks = Preflight.ID.allCases.map { id in
      var check = CheckDraft(id, kernel)
      switch id {
      case .iommuEnabled: facts.checkEnabled(&check)
      case .interruptRemapping: facts.checkInterrupts(&check)
      case .groupViable: facts.checkGroup(&check)
      case .driver: facts.checkDriver(&check)
      case .permission: facts.checkPermission(&check)
      case .memlock: facts.checkMemoryLock(&check)
      case .iommufd: facts.checkIOMMUFD(&check)
      case .cdev: facts.checkNode(&check)
      case .type1Entries: facts.checkEntries(&check)
      case .reservedRegions: facts.checkRegions(&check)
      case .modules: facts.checkModules(&check)
      }
      return check.check
    }
    return Preflight(device: address, checks: checks)
  }
}

/// What several checks look at.
struct PreflightFacts {
  let host: Host
  var device: PCIDevice?
  var group: IOMMUGroup?
  var kernel: any Kernel { host.kernel }
}
