import CapturedTrees
import Glibc
import IOMMU

/// `measure ROW [--interface iommufd|type1]`: one row of the benchmark, as a line `MEASURE {json}`.
///
/// `measure write_tree FOLDER` writes the tree of a server with 200 devices, for `list_200`.
///
/// Guest rows want two devices bound to vfio-pci, 00:02.0 and 00:03.0 of the virtual machines.
@main
enum Main {
  static let usage = "usage: measure strict_vs_raw|arena_file|domain_fixed [--interface iommufd|type1]"

  static func main() {
    var words = Array(CommandLine.arguments.dropFirst())
    var interface = Interface.iommufd
    if let at = words.firstIndex(of: "--interface"), at + 1 < words.count,
      let known = Interface(rawValue: words[at + 1])
    {
      interface = known
      words.removeSubrange(at...at + 1)
    }
    do {
      switch words {
      case ["strict_vs_raw"]: say("strict_vs_raw", interface.rawValue, try StrictAgainstRaw(interface).run())
      case ["arena_file"]: say("arena_file", nil, try arenaFile())
      case ["domain_fixed"]: say("domain_fixed", nil, try domainFixed())
      case let words where words.count == 2 && words[0] == "write_tree":
        try CapturedTree.server(deviceCount: 200).write(to: words[1])
      default:
        print(usage)
        exit(2)
      }
    } catch {
      print("measure: \(error)")
      exit(1)
    }
  }

  private static func say(_ id: String, _ variant: String?, _ result: Measurement) {
    let variant = variant.map { "\"\($0)\"" } ?? "null"
    print(
      "MEASURE {\"id\":\"\(id)\",\"variant\":\(variant),\"value\":\(result.value),\"anchor\":\"\(result.anchor)\","
        + "\"anchor_value\":\(result.anchorValue),\"repeats\":\(result.repeats)}")
  }
}

/// What came out, and what it is compared with.
struct Measurement {
  var value: Double
  var anchor: String
  var anchorValue: Double
  var repeats: Int
}

struct Failure: Error, CustomStringConvertible {
  let description: String
}

func nanoseconds() -> UInt64 {
  var time = timespec()
  unsafe clock_gettime(CLOCK_MONOTONIC, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

func median(_ values: [Double]) -> Double {
  let sorted = values.sorted()
  return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
}
