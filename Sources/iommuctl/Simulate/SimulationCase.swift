public import ArgumentParser
public import IOMMUSimulation

/// What a policy is tried on: an IOMMU, and what its work takes.
struct SimulationCase: Hashable {
  let policy: SimulationPolicy
  let iommu: SimulatedMachine.IOMMUKind
  let costs: CostTable
  let hardware: SimulationHardware

  /// Every policy on an IOMMU and a table of costs, or on all that go together.
  static func all(
    _ iommu: SimulatedMachine.IOMMUKind?, _ costs: CostTable?, _ hardware: SimulationHardware
  ) -> [SimulationCase] {
    var cases: [SimulationCase] = []
    for kind in SimulatedMachine.IOMMUKind.allCases where iommu == nil || kind == iommu {
      for table in CostTable.all where table.fits(kind) && (costs == nil || table == costs) {
        cases += SimulationPolicy.allCases.map {
          SimulationCase(policy: $0, iommu: kind, costs: table, hardware: hardware)
        }
      }
    }
    return cases
  }

  /// The machine: hardware that walks page tables of the process's in its own format, and whose time is its own.
  var machine: SimulatedMachine {
    var machine: SimulatedMachine =
      switch iommu {
      case .smmuv3: .smmuv3Nested
      case .vtd: .vtdNested
      }
    (machine.costs, machine.followsRealTime) = (costs, false)
    hardware.apply(to: &machine)
    return machine
  }

  /// Entries of its invalidation queue.
  var queueEntries: Int {
    1 << (iommu == .smmuv3 ? machine.smmu.commandQueueShift : machine.invalidationQueueShift)
  }
}

extension CostTable {
  /// Whether the table is about an IOMMU; that of virtual machines is about each.
  func fits(_ iommu: SimulatedMachine.IOMMUKind) -> Bool {
    switch name.prefix(while: { $0 != "-" }) {
    case "vtd": iommu == .vtd
    case "smmu": iommu == .smmuv3
    default: true
    }
  }
}

extension SimulatedMachine.IOMMUKind: ExpressibleByArgument {}

extension CostTable: ExpressibleByArgument {
  /// A table by its name.
  public init?(argument: String) {
    guard let table = Self.named(argument) else { return nil }
    self = table
  }
  /// The names.
  public static var allValueStrings: [String] { all.map(\.name) }
}

/// Where the operations come from.
enum SimulationSource: ExpressibleByArgument {
  case workload(Workload)
  case file(String)

  /// The name of a workload; else the path of a file, but for what looks like a workload's name.
  init?(argument: String) {
    if let workload = Workload(rawValue: argument) {
      self = .workload(workload)
    } else {
      if argument.isEmpty || argument.wholeMatch(of: /[Ww][0-9]+/) != nil { return nil }
      self = .file(argument)
    }
  }
  static var allValueStrings: [String] { Workload.allCases.map(\.rawValue) + ["the path of a trace"] }
}
