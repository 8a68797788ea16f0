import IOMMU

/// The one table of what does not apply where, and why.
///
/// Every row lists every case; a case that has no entry here runs everywhere.
enum Applicability {
  struct Rule: Sendable {
    /// Beginnings of the names that it is about.
    let names: [String]
    let reason: String
    let holds: @Sendable (Environment) -> Bool

    init(_ names: String..., reason: String, when holds: @escaping @Sendable (Environment) -> Bool) {
      (self.names, self.reason, self.holds) = (names, reason, holds)
    }
  }

  static let rules: [Rule] = [
    Rule("iommufd/", reason: "an ioctl of iommufd") { $0.interface != .iommufd },
    Rule("nesting/", reason: "a type1 container does not nest") { $0.interface != .iommufd },
    Rule("nesting/raw-", reason: "no stage-1 tables of an SMMUv3 can be the process's here") { !$0.nestsOnSMMU },
    Rule("stale/", reason: "this process does not own the tables that hardware walks") {
      $0.translation != .process || !($0.nestsOnSMMU || $0.nestsOnVTd)
    },
    Rule("stale/seen-\(InvalidationMutant.wrongTag.rawValue)", reason: "the domain has one tag") { $0.nestsOnVTd },
    Rule("count/nested-", reason: "this process does not own the tables of an SMMUv3") {
      $0.translation != .process || !$0.nestsOnSMMU
    },
    Rule("nesting/vtd-", reason: "no first-stage tables of a VT-d can be the process's here") { !$0.nestsOnVTd },
    Rule("type1/", reason: "an ioctl of the type1 container") { $0.interface != .type1 },
    Rule("error/unsafe-interrupts", reason: "the platform isolates interrupts, or is told to trust devices") {
      !$0.lacksInterruptRemapping
    },
    Rule("user/other-group", reason: "the simulated machine gives all nodes to one group") { $0.isSimulated },
    Rule(
      "bind/not-viable", "bind/group", "error/not-bound", "error/group", reason: "no shared group is known"
    ) {
      $0.devices.sharedGroup.isEmpty
    },
    Rule("life/close-at-once", "life/exit-at-once", reason: "a simulated machine has one process") { $0.isSimulated },
    Rule("interrupt/igb-", reason: "the simulated machine has no igb") { $0.devices.igb == nil },
    Rule("map/bar-memory", reason: "no BAR of the simulated kernel can be mapped") { $0.isSimulated },
    Rule("map/page-2m", reason: "no huge pages are reserved") { !hasHugePages($0) },
  ]

  static func reason(for item: ConformanceCase, in environment: Environment) -> String? {
    rules.first { rule in
      rule.names.contains { item.name.hasPrefix($0) } && rule.holds(environment)
    }?.reason
  }

  private static func hasHugePages(_ environment: Environment) -> Bool {
    (try? HostMemory(environment.kernel, byteCount: 2 << 20, hugePageShift: 21)) != nil
  }
}
