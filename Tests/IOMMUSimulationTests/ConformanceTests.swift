import IOMMUSimulation
import ConformanceSuite
import IOMMU
import Testing

/// The cases that run in the guests on a real kernel, here on the simulated one: what differs is the simulation's mistake.
@Testing.Suite struct ConformanceTests {
  /// A machine with one of its interfaces, and one case.
  struct Item: Sendable, CustomTestStringConvertible {
    let machine: String
    let interface: Interface
    var translation = TranslationChoice.kernel
    var isDebugged = false
    let item: ConformanceCase
    var testDescription: String {
      "\(machine) \(interface.rawValue) \(translation.rawValue)\(isDebugged ? " debug" : "") \(item.name)"
    }
  }

  static let machines = ["vtd-legacy", "vtd-caching", "vtd-nested", "smmuv3"]

  /// 65,535 maps to a limit that the simulated container has whatever IOMMU is behind it: for one machine.
  private static let limits: Set<String> = ["type1/entry-limit", "type1/entry-limit-error"]

  static let items = machines.flatMap { machine in
    Interface.allCases.flatMap { interface in
      ConformanceSuite.Suite.allCases.flatMap(\.cases).compactMap {
        limits.contains($0.name) && machine != machines[0]
          ? nil : Item(machine: machine, interface: interface, item: $0)
      }
    }
  }

  /// The same library over tables of the process. The cases that speak to iommufd without the library run above.
  static let processItems = ["vtd-legacy", "vtd-nested", "smmuv3", "smmuv3-nested"].flatMap { machine in
    ConformanceSuite.Suite.allCases.flatMap(\.cases).map {
      Item(machine: machine, interface: .iommufd, translation: .process, item: $0)
    }
  }

  /// In debug mode everything goes as without.
  static let debugItems = [
    ("vtd-legacy", Interface.type1, TranslationChoice.kernel), ("smmuv3", .iommufd, .process),
  ].flatMap { machine, interface, translation in
    ConformanceSuite.Suite.allCases.flatMap(\.cases).filter { !limits.contains($0.name) }.map {
      Item(machine: machine, interface: interface, translation: translation, isDebugged: true, item: $0)
    }
  }

  @Test(arguments: items + processItems + debugItems) func holds(_ item: Item) throws {
    var environment = Environment.simulated(
      item.machine, interface: item.interface, translation: item.translation,
      unprivileged: item.item.suite == .unprivileged)
    if item.isDebugged { environment.debug = DebugOptions(onReport: { _ in }) }
    // What does not apply is skipped with a reason from the suite's own table, as in the guests.
    if item.item.reasonToSkip(in: environment) != nil { return }
    do { try item.item.run(in: environment) } catch { Issue.record("\(error)") }
  }

  @Test(arguments: Interface.allCases) func withoutInterruptRemapping(_ interface: Interface) {
    let environment = Environment.simulated("vtd-legacy-no-remapping", interface: interface)
    let outcomes = Runner(environment) { _ in }.run([.conformance], filter: "error/unsafe-interrupts")
    #expect(outcomes.map(\.verdict) == [.pass])
  }

  @Test func namesAreUnique() {
    let names = ConformanceSuite.Suite.allCases.flatMap(\.cases).map(\.name)
    #expect(Set(names).count == names.count)
  }
}
