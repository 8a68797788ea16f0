import CapturedTrees
import Foundation

/// A tree below a directory of its own, removed with the value.
final class WrittenTree {
  let root: String

  init(_ tree: CapturedTree) throws {
    root = FileManager.default.temporaryDirectory.appendingPathComponent("iommuctl-\(UUID().uuidString)").path
    try tree.write(to: root)
  }

  deinit { try? FileManager.default.removeItem(atPath: root) }
}

extension CapturedTree {
  /// One of Tests/IOMMUTests/Fixtures.
  static func fixture(_ name: String) throws -> CapturedTree {
    let tests = #filePath.split(separator: "/").dropLast(3).map { "/\($0)" }.joined()
    return try CapturedTree(parsing: textFile("\(tests)/IOMMUTests/Fixtures/\(name).tree"))
  }

  /// Three devices: one for VFIO, one of the host in the same group, and one alone. No name of theirs is in pci.ids.
  static var small: CapturedTree {
    var builder = TreeBuilder()
    builder.add(unit: "dmar0")
    for (address, group, driver) in [
      ("0000:01:00.0", 7, "vfio-pci"), ("0000:01:00.1", 7, "examplehc"), ("0000:02:00.0", 8, "example"),
    ] {
      var device = TreeBuilder.Device(address, 0xf0f1, 0x0001, class: 0x020000)
      (device.driver, device.group, device.unit, device.numaNode) = (driver, group, "dmar0", 0)
      builder.add(device)
    }
    builder.addNode("vfio0", of: "0000:01:00.0", group: 7)
    var tree = builder.tree
    tree["/proc/cmdline"] = "intel_iommu=on\n"
    tree["/proc/interrupts"] = "  CPU0\n 25: 1 IR-PCI-MSI-0000:00:01.0 0-edge\n"
    for node in ["/dev/iommu", "/dev/vfio/vfio"] { tree[node] = "" }
    return tree
  }
}

func textFile(_ path: String) throws -> String { try String(contentsOfFile: path, encoding: .utf8) }

/// A text in Tests/iommuctlTests/Golden.
func golden(_ name: String) throws -> String {
  let tests = #filePath.split(separator: "/").dropLast(2).map { "/\($0)" }.joined()
  return try textFile("\(tests)/Golden/\(name).txt")
}
