import CIOMMU
import IOMMU
import IOMMUSimulation
import Synchronization

/// Runs a trace under a policy, on a machine of its own.
///
/// The operations are done in the order of the trace, all by one thread on one processor, whatever their threads: so the same
/// trace comes to the same figures each time. Nothing of them depends on the real time, nor on where memory lies.
struct SimulationRun: Sendable {
  let trace: Trace
  let what: SimulationCase
  /// For ``SimulationPolicy/threshold``, in pages of 4 KiB.
  let threshold: Int
  /// What stands between the library and the machine's kernel.
  var kernel: @Sendable (any Kernel) -> any Kernel = { $0 }

  static let address = "0000:00:02.0"

  func run() throws(DMAError) -> SimulationResult {
    let outcome = Shared()
    // Queues and caches are the processor's, and the thread shall not change it.
    _ = try BenchThreads.run(1, on: [ci_cpu()]) { _, _ throws(DMAError) in
      let found = try play()
      outcome.value.withLock { $0 = found }
      return BenchPart()
    }
    return SimulationResult(what, outcome.value.withLock { $0 })
  }

  private final class Shared: Sendable {
    let value = Mutex(SimulationOutcome())
  }

  private func play() throws(DMAError) -> SimulationOutcome {
    let simulated = SimulatedHost(what.machine, devices: [Self.address: EduModel(addressBits: 64)])
    let host = Host(kernel: kernel(simulated.kernel))
    let timer: FlushTimer
    do throws(Errno) { timer = try FlushTimer.byHand(for: host.kernel) } catch {
      throw DMAError(.system, "simulate", errno: error, detail: "No event descriptor")
    }
    defer { timer.end() }
    // All mappings are of the same memory: what a device reaches is told by their addresses. It lies as huge pages do, so that the
    // second stage has the same leaves each time.
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(trace.longestByteCount), alignment: 2 << 20)
    defer { unsafe memory.deallocate() }
    let device = try Device(Self.address, on: host, translation: .process, debug: .off)
    defer { device.close() }
    let registration = try unsafe device.dma.register(unsafe: UnsafeRawBufferPointer(memory))
    try device.dma.switchProtection(to: what.policy.protection)
    if let pages = what.policy.longestPages(threshold) {
      device.dma.processOwned?.budget.setLongest(UInt64(pages) * 4096)
    }
    simulated.crowdCommandQueue(what.hardware.producers)
    let player = try unsafe SimulationPlayer(
      device, simulated, UnsafeRawBufferPointer(memory), SimulatedTime(host.kernel, timer), slotCount: trace.slotCount)
    let outcome = try player.play(trace, isLazy: what.policy.isLazy)
    try registration.unregister()
    return outcome
  }
}

extension Trace.Operation {
  /// The pages of 4 KiB that one buffer takes, and all of them.
  var pagesEach: Int { Int((byteCount + 4095) / 4096) }
  var pages: Int { Int(count) * pagesEach }
}

extension Trace {
  /// The most that one operation maps, in whole pages, at least one.
  var longestByteCount: UInt64 {
    var longest = 1
    for phase in phases { for operation in phase.operations { longest = max(longest, operation.pages) } }
    return UInt64(longest) * 4096
  }
}
