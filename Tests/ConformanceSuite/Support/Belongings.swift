import Glibc
import IOMMU
import IOMMUSimulation

/// What this process holds of the kernel: compared before and after, it shows what an operation left behind.
struct Belongings: Equatable, CustomStringConvertible {
  /// Open descriptors of devices, and those of memory files and events.
  var devices = 0, others = 0
  /// Bytes pinned for devices, but for page tables of open domains, and on the simulated kernel objects of iommufd, domains and areas.
  var pinnedBytes: UInt64 = 0
  var objects = 0

  var description: String {
    "\(devices) device descriptors, \(others) others, \(pinnedBytes) bytes pinned, \(objects) objects"
  }

  /// Counts what exists now.
  init(_ environment: Environment) throws {
    if let simulated = environment.simulated {
      let census = simulated.kernel.census
      devices = census.descriptors
      others = census.memoryFiles + census.events
      pinnedBytes = census.pinnedBytes - environment.domains.tableBytes
      objects = census.addressSpaces + census.pageTables + census.areas + census.domains
    } else {
      try countDescriptors(environment.kernel)
      pinnedBytes = try Self.pinned(environment.kernel) - environment.domains.tableBytes
    }
  }

  /// The same once threads that end by themselves have ended: at most two seconds later.
  static func settled(_ environment: Environment, others: Int?) throws -> Belongings {
    if others == nil { usleep(50_000) }
    var now = try Belongings(environment)
    for _ in 0..<200 {
      if now.devices == 0, now.pinnedBytes == 0, now.objects == 0, now.others == others ?? now.others {
        break
      }
      usleep(10_000)  // the process's own time, which a simulated machine's is not
      now = try Belongings(environment)
    }
    return now
  }

  private mutating func countDescriptors(_ kernel: any Kernel) throws {
    for name in try kernel.listDirectory("/proc/self/fd") {
      guard let target = try? kernel.readLink("/proc/self/fd/\(name)") else { continue }
      if target.hasPrefix("/dev/vfio") || target.hasPrefix("/dev/iommu") || target.contains("[vfio") {
        devices += 1
      } else if target.contains("memfd:") || target.contains("[eventfd") {
        others += 1
      }
    }
  }

  /// VmPin counts what iommufd has pinned, VmLck what type1 has.
  static func pinned(_ kernel: any Kernel) throws -> UInt64 {
    let status = String(decoding: try kernel.readFile("/proc/self/status"), as: UTF8.self)
    var total: UInt64 = 0
    for line in status.split(separator: "\n") where line.hasPrefix("VmPin:") || line.hasPrefix("VmLck:") {
      total += UInt64(line.drop { !$0.isNumber }.prefix { $0.isNumber }) ?? 0
    }
    return total << 10
  }
}
