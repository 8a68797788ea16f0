import CIOMMU
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
  static let usage = """
    usage: measure strict_vs_raw|arena_vs_ioctl|arena_file|domain_fixed [--interface iommufd|type1]
           measure step_1g [virtual]|bounce_choice [table]|producers_16 virtual
           measure alloc_1|alloc_32|alloc_64|alloc_512|fifo_1024|fifo_65536|cross_thread|threads_2|threads_16
           measure translate_warm|translate_100k|lazy_pair
           measure table_call|table_leaf|sim_hit|sim_miss|list_commands|collateral|l3_misses|owned_native|owned
           measure fail_524k|sac_free|sac_exhausted|held_ratio OPERATIONS|magazine_idle|idle_wakeups
    """

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
      case ["arena_vs_ioctl"]: say("arena_vs_ioctl", nil, try StrictAgainstRaw(interface).runPersistent())
      case ["bounce_choice"]: say("bounce_choice", nil, try BounceChoice.run())
      case ["bounce_choice", "table"]: say("bounce_choice", nil, try BounceChoice.run(isTold: true))
      case ["step_1g"]: say("step_1g", try LongestStep.onTheKernel())
      case ["step_1g", "virtual"]: say("step_1g", "virtual", try LongestStep.onTheVirtualClock())
      case ["table_call"]: say("table_call", nil, try TableEngine.run(pages: 1))
      case ["table_leaf"]: say("table_leaf", nil, try TableEngine.run(pages: 256))
      case ["sim_hit"]: say("sim_hit", nil, try SimulatedCaches.speed(misses: false))
      case ["sim_miss"]: say("sim_miss", nil, try SimulatedCaches.speed(misses: true))
      case ["list_commands"]: say("list_commands", nil, try SimulatedCaches.listCommands())
      case ["collateral"]: say("collateral", nil, try SimulatedCaches.collateral())
      case ["l3_misses"]: say("l3_misses", nil, try SimulatedCaches.lastTables())
      case ["owned_native"]: say("owned_native", nil, try OwnedTables.native())
      case ["owned"]:
        for (id, result) in try OwnedTables.inGuest() { say(id, nil, result) }
      case ["producers_16", "virtual"]: say("producers_16", nil, Producers.run())
      case ["arena_file"]: say("arena_file", nil, try arenaFile())
      case ["domain_fixed"]: say("domain_fixed", nil, try domainFixed())
      case ["alloc_1"]: say("alloc_1", try AllocatorPairs.locks(0x1000))
      case ["alloc_32"]: say("alloc_32", try AllocatorPairs.locks(0x20000))
      case ["alloc_64"]: say("alloc_64", try AllocatorThreads.pairs(0x40000))
      case ["alloc_512"]: say("alloc_512", try AllocatorThreads.pairs(0x200000))
      case ["fifo_1024"]: say("fifo_1024", nil, try AllocatorPairs.fifo(live: 1024))
      case ["fifo_65536"]: say("fifo_65536", nil, try AllocatorPairs.fifo(live: 65536))
      case ["cross_thread"]: say("cross_thread", nil, try AllocatorThreads.cross())
      case ["threads_2"]: say("threads_2", nil, try AllocatorThreads.scaling(2))
      case ["threads_16"]: say("threads_16", nil, try AllocatorThreads.scaling(16))
      case ["translate_warm"]: say("translate_warm", nil, try DataPath.translate(live: 1))
      case ["translate_100k"]: say("translate_100k", nil, try DataPath.translate(live: 100_000))
      case ["lazy_pair"]: say("lazy_pair", nil, try DataPath.lazyPair())
      case ["fail_524k"]: say("fail_524k", nil, try AllocatorSpaces.failing())
      case ["sac_free"]: say("sac_free", nil, try AllocatorSpaces.sac(isExhausted: false))
      case ["sac_exhausted"]: say("sac_exhausted", nil, try AllocatorSpaces.sac(isExhausted: true))
      case ["magazine_idle"]: say("magazine_idle", nil, try AllocatorSpaces.idle())
      case ["idle_wakeups"]: say("idle_wakeups", nil, try IdleWakeups.run())
      case let words where words.count == 2 && words[0] == "held_ratio":
        say("held_ratio", nil, try AllocatorSpaces.held(operations: Int(words[1]) ?? 10_000_000))
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

  private static func say(_ id: String, _ results: [(variant: String, Measurement)]) {
    for (variant, result) in results { say(id, variant, result) }
  }

  private static func say(_ id: String, _ variant: String?, _ result: Measurement) {
    let variant = variant.map { "\"\($0)\"" } ?? "null"
    print(
      "MEASURE {\"id\":\"\(id)\",\"variant\":\(variant),\"value\":\(result.value.map { "\($0)" } ?? "null"),\"anchor\":\"\(result.anchor)\","
        + "\"anchor_value\":\(result.anchorValue),\"repeats\":\(result.repeats)"
        + (result.reason.map { ",\"reason\":\"\($0)\"" } ?? "") + "}")
  }
}

/// What came out, and what it is compared with.
struct Measurement {
  var value: Double?
  var anchor: String
  var anchorValue: Double
  var repeats: Int
  /// Why there is no value.
  var reason: String?

  static func notRun(_ reason: String) -> Measurement {
    Measurement(value: nil, anchor: "-", anchorValue: 0, repeats: 0, reason: reason)
  }
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
