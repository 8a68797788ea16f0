import CIOMMU

/// How much memory this process can have at most, so that what it can never have is refused before a page is touched: memory
/// files fill up silently until the kernel ends a process.
package enum MachineMemory {
  /// Bytes: the machine's memory, or what control groups leave this process of it. Read once.
  package static let byteCount = byteCount(physical: ci_physical_memory()) { path in
    (try? LiveKernel().readFile(path)).map { String(decoding: $0, as: UTF8.self) }
  }

  /// The least of `physical` and the limits of the control groups, version 2, that the process is in: its own, and those above,
  /// each of which holds by itself. A file that is not there, or says `max`, is no limit.
  package static func byteCount(physical: UInt64, reading file: (String) -> String?) -> UInt64 {
    var least = physical
    let lines = (file("/proc/self/cgroup") ?? "").split(separator: "\n")
    guard let line = lines.first(where: { $0.hasPrefix("0::/") }) else { return least }
    var names = line.dropFirst(4).split(separator: "/")
    while true {
      let directory = (["/sys/fs/cgroup"] + names.map(String.init)).joined(separator: "/")
      let limit = file("\(directory)/memory.max").flatMap { UInt64($0.prefix { $0 != "\n" }) }
      if let limit { least = min(least, limit) }
      if names.popLast() == nil { return least }
    }
  }
}
