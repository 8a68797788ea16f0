import CIOMMU

/// The clock that latencies are taken with.
struct BenchClock: Sendable {
  /// Nanoseconds that a latency contains for reading the clock once; taken off each.
  let cost: UInt64

  /// Finds out what reading the clock costs: the median of 1000.
  init() {
    var times: [UInt64] = []
    for _ in 0..<1000 {
      let began = Self.now()
      times.append(Self.now() - began)
    }
    cost = times.sorted()[500]
  }

  /// Nanoseconds of `CLOCK_MONOTONIC`.
  @inline(__always)
  static func now() -> UInt64 { UInt64(ci_monotonic_ns()) }

  /// From one reading to another, without the reading.
  @inline(__always)
  func between(_ began: UInt64, _ ended: UInt64) -> UInt64 {
    let time = ended &- began
    return time > cost ? time &- cost : 0
  }

  /// Waits, as the kernel's `ndelay` does.
  @inline(__always)
  static func delay(_ nanoseconds: UInt64) {
    if nanoseconds == 0 { return }
    let end = now() + nanoseconds
    while now() < end { ci_cpu_pause() }
  }
}
