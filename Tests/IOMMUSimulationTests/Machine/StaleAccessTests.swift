import ConformanceSuite
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// No stale access on a simulated SMMUv3 with tables of the process, and that it would be seen: the program that the guests run, with
/// a device that writes at the very moment in which an invalidation completes.
@Testing.Suite struct StaleAccessTests {
  private static let address = "0000:00:02.0"
  private static let perCPU = Protection.lazy(FlushQueueOptions(.perCPU, timeout: .seconds(1000)))
  private static let single = Protection.lazy(FlushQueueOptions(.single, timeout: .seconds(1000)))

  static func run(
    _ options: StaleAccess.Options, _ machine: SimulatedMachine = .smmuv3Nested,
    _ prepare: (Device) -> Void = { _ in }
  ) throws -> (outcome: StaleAccess.Outcome, counters: SMMUCounters) {
    let machine = SimulatedHost(machine, devices: [address: ScratchModel()]), kernel = FaultingKernel(machine.kernel)
    let device = try Device(address, on: Host(kernel: kernel), translation: .process)
    prepare(device)
    let outcome = try StaleAccess.run(options, device, SimulatedWriter(machine, address), on: kernel)
    let counters = machine.smmuCounters()
    device.close()
    return (outcome, counters)
  }

  /// The seed of SWIFT_IOMMU_SEED, or always the same.
  private static var seed: UInt64 {
    unsafe getenv("SWIFT_IOMMU_SEED").flatMap { unsafe UInt64(String(cString: $0)) } ?? 20_261
  }

  @Test(arguments: [(Protection.strict, 10_000), (perCPU, 5000), (single, 5000)])
  func none(_ protection: Protection, _ steps: Int) throws {
    let options = StaleAccess.Options(seed: Self.seed, steps: steps, protection)
    print("stale access: seed \(options.seed), \(steps) steps")
    let (outcome, counters) = try Self.run(options)
    #expect(outcome.findings == [])
    #expect(outcome.steps == steps && outcome.unmaps > steps / 4 && outcome.tables > steps / 100)
    #expect(counters.iotlb.hits > steps / 20 && counters.walkCache.hits > steps / 20)
    if protection == .strict {
      #expect(outcome.reusedAddresses > steps / 10)
    } else {
      #expect(outcome.drains > steps / 50)
    }
  }

  /// The same program with the same seed has the same results.
  @Test func oneSeedOneProgram() throws {
    let options = StaleAccess.Options(seed: 5, steps: 200)
    let first = try Self.run(options).outcome, second = try Self.run(options).outcome
    #expect(first.digest == second.digest && first.writes == second.writes)
    var other = options
    other.seed = 6
    #expect(try Self.run(other).outcome.digest != first.digest)
  }

  /// How many commands an invalidation may have changes which there are, and nothing that a device sees.
  @Test func budgetsShowTheSame() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.hasRangeInvalidation = false
    let options = StaleAccess.Options(seed: Self.seed, steps: 1000)
    let runs = try [1, 63, Int.max].map { limit in
      try Self.run(options, machine) { ($0.dma.processOwned as? ProcessOwnedSMMU)?.budget.hold(at: limit) }
    }
    #expect(runs.allSatisfy { $0.outcome.findings == [] && $0.outcome.steps == 1000 })
    #expect(Set(runs.map(\.outcome.digest)).count == 1 && Set(runs.map(\.outcome.writes)).count == 1)
    // Else they would be one and the same.
    let byASID = runs.map { $0.counters.process[.invalidateASID] },
      byAddress = runs.map { $0.counters.process[.invalidateAddress] }
    #expect(byASID[0] > byASID[1] * 2 && byASID[1] == byASID[2])
    #expect(byAddress[1] > byAddress[0] * 2 && byAddress[1] == byAddress[2])
  }

  /// Of a hundred seeds, 95 at least notice each mistake.
  @Test(arguments: InvalidationMutant.allCases) func mistakesAreSeen(_ mutant: InvalidationMutant) throws {
    try seen(mutant, .strict)
  }

  @Test(arguments: [InvalidationMutant.dropped, .wrongASID]) func lazyMistakesAreSeen(_ mutant: InvalidationMutant)
    throws
  {
    try seen(mutant, Self.perCPU)
  }

  private func seen(_ mutant: InvalidationMutant, _ protection: Protection) throws {
    var unseen: [UInt64] = []
    for seed in 1...100 as ClosedRange<UInt64> {
      var options = StaleAccess.Options(seed: seed, steps: 500, protection, mutant: mutant)
      options.nth = Int(1 + seed % (protection == .strict ? 20 : 5))
      if try Self.run(options).outcome.findings.isEmpty { unseen.append(seed) }
    }
    #expect(unseen.count <= 5, "\(mutant.rawValue) is not seen with seeds \(unseen)")
  }
}
