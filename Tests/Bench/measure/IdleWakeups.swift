import Glibc
import IOMMU
import IOMMUSimulation

/// Timers, and wake-ups of any thread but the one that looks, in a second in which a process with a device does nothing.
///
/// The device was used before: in both lazy topologies, flushed by hand and by the timer, in strict mode again for nothing.
enum IdleWakeups {
  static func run() throws -> Measurement {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let device = try Device("0000:00:02.0", on: machine.host)
    for topology in FlushQueueOptions.Topology.allCases {
      try device.dma.switchProtection(to: .lazy(FlushQueueOptions(topology, timeout: .milliseconds(10))))
      for round in 0..<2 {
        for _ in 0..<100 { _ = try device.dma.map(try device.dma.buffer(byteCount: 64), .bidirectional).unmap() }
        if round == 0 { try device.dma.drain() }
      }
      for _ in 0..<500 where device.dma.statistics.queuedBytes > 0 { usleep(10_000) }
    }
    guard device.dma.statistics.flushes >= 4 else { throw Failure(description: "the timer did not flush") }
    // The timer's thread stays a moment for more, then ends.
    usleep(300_000)
    let kernel = LiveKernel()
    let before = try wakeUps(kernel)
    usleep(1_000_000)
    let after = try wakeUps(kernel)
    let count = after.reduce(0) { $0 + $1.value - (before[$1.key] ?? 0) }
    device.close()
    return Measurement(
      value: Double(count + (try timers(kernel))), anchor: "other threads", anchorValue: Double(after.count), repeats: 1
    )
  }

  /// How often each other thread went to sleep of itself or was made to, as /proc tells.
  private static func wakeUps(_ kernel: LiveKernel) throws -> [String: Int] {
    var counts: [String: Int] = [:]
    for task in try kernel.listDirectory("/proc/self/task") where task != "\(getpid())" {
      guard let bytes = try? kernel.readFile("/proc/self/task/\(task)/status") else { continue }
      for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") where line.contains("ctxt_switches:") {
        counts[task, default: 0] += Int(line.split(separator: "\t").last ?? "") ?? 0
      }
    }
    return counts
  }

  /// Timers that are descriptors, and those of timer_create.
  private static func timers(_ kernel: LiveKernel) throws -> Int {
    let files = try kernel.listDirectory("/proc/self/fd").count {
      (try? kernel.readLink("/proc/self/fd/\($0)"))?.contains("timerfd") ?? false
    }
    let armed = (try? kernel.readFile("/proc/self/timers")) ?? []
    return files + String(decoding: armed, as: UTF8.self).split(separator: "\n").count { $0.hasPrefix("ID:") }
  }
}
