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
    let name: ConformanceCase
    var testDescription: String { "\(machine) \(interface.rawValue) \(name.name)" }
  }

  static let items: [Item] = ["vtd-legacy", "vtd-caching", "smmuv3"].flatMap { machine in
    Interface.allCases.flatMap { interface in
      [ConformanceSuite.Suite.conformance, .dma, .counts, .negative].flatMap(\.cases).map {
        Item(machine: machine, interface: interface, name: $0)
      }
    }
  }

  @Test(arguments: items) func holds(_ item: Item) throws {
    let environment = Environment.simulated(item.machine, interface: item.interface)
    // What does not apply is skipped with a reason from the suite's own table, as in the guests.
    if item.name.reasonToSkip(in: environment) != nil { return }
    do { try item.name.run(in: environment) } catch { Issue.record("\(error)") }
    #expect(environment.simulated?.isClean == true, "Something is left open")
  }

  @Test func namesAreUnique() {
    let names = ConformanceSuite.Suite.allCases.flatMap(\.cases).map(\.name)
    #expect(Set(names).count == names.count)
  }
}
