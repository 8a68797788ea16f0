import IOMMU

/// Lines of the kernel's log that something went wrong in the kernel itself, or took it too long.
///
/// While it lasts, the kernel looks for processors and tasks that hang: the guests' kernels are built so that they can.
final class KernelComplaints {
  private let kernel: any Kernel
  private let first: UInt64
  private var former: [(path: String, value: String)] = []

  /// A soft lockup is told after twice the threshold: a processor that did not get to its watchdog's task for 10 s. A task hangs that
  /// waited for 20 s and cannot be killed meanwhile.
  private static let settings = [
    ("soft_watchdog", "1"), ("watchdog_thresh", "5"), ("hung_task_timeout_secs", "20"), ("hung_task_warnings", "-1"),
  ]
  private static let signs = [
    "soft lockup", "LOCKUP", "rcu: INFO", "WARNING:", "BUG:", "Oops", "blocked for more than",
  ]

  /// Looks at what comes from now on.
  ///
  /// - Throws: ``Failure`` when this kernel does not look for what hangs.
  init(_ environment: Environment) throws {
    kernel = environment.kernel
    first = try kernel.kernelLog(from: 0).last.map { $0.sequence + 1 } ?? 0
    do {
      for (name, value) in Self.settings {
        let path = "/proc/sys/kernel/\(name)"
        former.append((path, try read(path)))
        try kernel.writeFile(path, value)
        try expectEqual(try read(path), value, path)
      }
    } catch {
      end()
      throw Failure("The kernel does not look for what hangs: \(error)")
    }
  }

  private func read(_ path: String) throws -> String {
    String(decoding: try kernel.readFile(path).prefix { $0 > 0x20 }, as: UTF8.self)
  }

  /// What it said.
  func lines() throws -> [String] {
    try kernel.kernelLog(from: first).map(\.text).filter { line in Self.signs.contains { line.contains($0) } }
  }

  /// Looks for what hangs as it did before.
  func end() {
    for (path, value) in former { try? kernel.writeFile(path, value) }
    former = []
  }
}
