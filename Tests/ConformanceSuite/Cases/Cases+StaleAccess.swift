import IOMMU
import IOMMUSimulation
import NVMeDriver

/// Random programs that look for stale access, and mistakes that they must notice.
extension Cases {
  static let staleAccess: [ConformanceCase] =
    [
      ("strict", Protection.strict), ("lazy-per-cpu", lazily(.perCPU)), ("lazy-single", lazily(.single)),
    ].map { name, protection in
      ConformanceCase(.dma, "stale/\(name)") { environment in
        // Simulated machines have a test of their own that is as long.
        let steps = environment.steps ?? (environment.isSimulated ? 300 : 10_000)
        let options = StaleAccess.Options(seed: environment.seed ?? 20_261, steps: steps, protection)
        let outcome = try run(options, "stale/\(name)", environment)
        try expect(outcome.findings.isEmpty, "Stale access: \(outcome.findings)")
        try expectEqual(outcome.steps, steps, "steps")
      }
    }
    + InvalidationMutant.allCases.filter(isForGuests).map { mutant in
      ConformanceCase(.dma, "stale/seen-\(mutant.rawValue)") { environment in
        var options = StaleAccess.Options(seed: environment.seed ?? 7, steps: 1000, mutant: mutant)
        options.nth = 3
        let outcome = try run(options, "stale/seen-\(mutant.rawValue)", environment)
        try expect(!outcome.findings.isEmpty, "Nobody noticed in \(outcome.steps) steps")
      }
    }

  /// Nothing but drain() flushes.
  private static func lazily(_ topology: FlushQueueOptions.Topology) -> Protection {
    .lazy(FlushQueueOptions(topology, timeout: .seconds(1000)))
  }

  /// QEMU has nothing that caches the way to leaves, and its devices do not wait for the moment between sync and store.
  private static func isForGuests(_ mutant: InvalidationMutant) -> Bool {
    !mutant.needsWalkCache && mutant != .syncBeforeStore
  }

  private static func run(
    _ options: StaleAccess.Options, _ name: String, _ environment: Environment
  ) throws -> StaleAccess.Outcome {
    let kernel = FaultingKernel(environment.kernel)
    let device = try environment.asking(kernel).open(environment.devices.nvme)
    defer { device.close() }
    environment.say("SEED \(name) \(options.seed)")
    let controller = try NVMeController(device)
    let outcome = try StaleAccess.run(options, device, NVMeWriter(controller: controller), on: kernel)
    environment.say(
      "STALE \(name): \(outcome.steps) steps, \(outcome.writes) writes, \(outcome.unmaps) unmaps, "
        + "\(outcome.reusedAddresses) addresses used again, \(outcome.tables) tables, \(outcome.drains) drains")
    return outcome
  }
}
