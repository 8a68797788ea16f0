import ConformanceSuite
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// No stale access on simulated hardware with tables of the process, and that it would be seen: the program that the guests run, with
/// a device that writes at the very moment in which an invalidation completes.
@Testing.Suite struct StaleAccessTests {
  /// What walks the tables.
  enum Hardware: CaseIterable {
    case smmuv3, vtd

    var machine: SimulatedMachine { self == .smmuv3 ? .smmuv3Nested : .vtdNested }
    /// How often a translation was cached, and the way to one.
    func hits(_ machine: SimulatedHost) -> (pages: Int, tables: Int) {
      self == .smmuv3
        ? (machine.smmuCounters().iotlb.hits, machine.smmuCounters().walkCache.hits)
        : (machine.vtdCounters().iotlb.hits, machine.vtdCounters().walkCache.hits)
    }
  }

  private static let address = "0000:00:02.0", second = "0000:00:03.0"
  private static let perCPU = Protection.lazy(FlushQueueOptions(.perCPU, timeout: .seconds(1000)))
  private static let single = Protection.lazy(FlushQueueOptions(.single, timeout: .seconds(1000)))

  static func run(
    _ options: StaleAccess.Options, _ hardware: Hardware, _ change: (inout SimulatedMachine) -> Void = { _ in },
    _ prepare: (Device) -> Void = { _ in }
  ) throws -> (outcome: StaleAccess.Outcome, machine: SimulatedHost) {
    var description = hardware.machine
    change(&description)
    // A command for a VT-d says no tag: another one is that of another VT-d of the domain.
    let isSplit = hardware == .vtd && options.mutant == .wrongTag
    if isSplit {
      description.devices.append(SimulatedDevice(second, ScratchModel()))
      description.devices[0].iommuUnit = 1
    }
    let machine = SimulatedHost(description, devices: [address: ScratchModel()])
    let kernel = FaultingKernel(machine.kernel), host = Host(kernel: kernel)
    let device = try Device(address, on: host, translation: .process)
    let other = isSplit ? try Device(second, on: host, sharing: device.dma) : nil
    prepare(device)
    let outcome = try StaleAccess.run(options, device, SimulatedWriter(machine, address), on: kernel)
    other?.close()
    device.close()
    return (outcome, machine)
  }

  /// The seed of SWIFT_IOMMU_SEED, or always the same.
  private static var seed: UInt64 {
    unsafe getenv("SWIFT_IOMMU_SEED").flatMap { unsafe UInt64(String(cString: $0)) } ?? 20_261
  }

  @Test(arguments: Hardware.allCases, [(Protection.strict, 10_000), (perCPU, 5000), (single, 5000)])
  func none(_ hardware: Hardware, _ length: (protection: Protection, steps: Int)) throws {
    let steps = length.steps
    let options = StaleAccess.Options(seed: Self.seed, steps: steps, length.protection)
    print("stale access: \(hardware), seed \(options.seed), \(steps) steps")
    let (outcome, machine) = try Self.run(options, hardware), hits = hardware.hits(machine)
    #expect(outcome.findings == [])
    #expect(outcome.steps == steps && outcome.unmaps > steps / 4 && outcome.tables > steps / 100)
    #expect(hits.pages > steps / 20 && hits.tables > steps / 20)
    if length.protection == .strict {
      #expect(outcome.reusedAddresses > steps / 10)
    } else {
      #expect(outcome.drains > steps / 50)
    }
  }

  /// The same program with the same seed has the same results.
  @Test(arguments: Hardware.allCases) func oneSeedOneProgram(_ hardware: Hardware) throws {
    let options = StaleAccess.Options(seed: 5, steps: 200)
    let first = try Self.run(options, hardware).outcome, second = try Self.run(options, hardware).outcome
    #expect(first.digest == second.digest && first.writes == second.writes)
    var other = options
    other.seed = 6
    #expect(try Self.run(other, hardware).outcome.digest != first.digest)
  }

  /// How many commands an invalidation may have changes which there are, and nothing that a device sees.
  @Test func budgetsShowTheSame() throws {
    let options = StaleAccess.Options(seed: Self.seed, steps: 1000)
    let runs = try [1, 63, Int.max].map { limit in
      try Self.run(options, .smmuv3, { $0.smmu.hasRangeInvalidation = false }) {
        $0.dma.processOwned?.budget.hold(at: limit)
      }
    }
    Self.expectTheSame(runs.map(\.outcome))
    // Else they would be one and the same.
    let sent = runs.map { $0.machine.smmuCounters().process }
    let byASID = sent.map { $0[.invalidateASID] }, byAddress = sent.map { $0[.invalidateAddress] }
    #expect(byASID[0] > byASID[1] * 2 && byASID[1] == byASID[2])
    #expect(byAddress[1] > byAddress[0] * 2 && byAddress[1] == byAddress[2])
  }

  /// The same of how many pages a descriptor may have, which decides on a VT-d: one, four, or a table of them.
  @Test func masksShowTheSame() throws {
    let options = StaleAccess.Options(seed: Self.seed, steps: 1000)
    let runs = try [0, 2, 9].map { mask in
      try Self.run(options, .vtd, { $0.vtdRegisters!.maximumAddressMask = mask })
    }
    Self.expectTheSame(runs.map(\.outcome))
    let sent = runs.map { $0.machine.vtdCounters().process }
    #expect(sent[0].wholeTag > sent[1].wholeTag * 2 && sent[1].wholeTag > sent[2].wholeTag * 2)
    #expect(sent[0].pageSelective < sent[1].pageSelective && sent[1].pageSelective < sent[2].pageSelective)
  }

  private static func expectTheSame(_ outcomes: [StaleAccess.Outcome]) {
    #expect(outcomes.allSatisfy { $0.findings == [] && $0.steps == 1000 })
    #expect(Set(outcomes.map(\.digest)).count == 1 && Set(outcomes.map(\.writes)).count == 1)
  }

  /// Of a hundred seeds, 95 at least notice each mistake.
  @Test(arguments: Hardware.allCases, InvalidationMutant.allCases)
  func mistakesAreSeen(_ hardware: Hardware, _ mutant: InvalidationMutant) throws {
    try seen(mutant, .strict, hardware)
  }

  @Test(arguments: Hardware.allCases, [InvalidationMutant.dropped, .wrongTag])
  func lazyMistakesAreSeen(_ hardware: Hardware, _ mutant: InvalidationMutant) throws {
    try seen(mutant, Self.perCPU, hardware)
  }

  private func seen(_ mutant: InvalidationMutant, _ protection: Protection, _ hardware: Hardware) throws {
    var unseen: [UInt64] = []
    for seed in 1...100 as ClosedRange<UInt64> {
      var options = StaleAccess.Options(seed: seed, steps: 500, protection, mutant: mutant)
      options.nth = Int(1 + seed % (protection == .strict ? 20 : 5))
      if try Self.run(options, hardware).outcome.findings.isEmpty { unseen.append(seed) }
    }
    print("stale access: \(hardware), \(mutant.rawValue) is seen with \(100 - unseen.count) of 100 seeds")
    #expect(unseen.count <= 5, "\(mutant.rawValue) is not seen with seeds \(unseen)")
  }
}
