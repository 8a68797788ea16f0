import IOMMU
import IOMMUSimulation

/// What `demo` and `selftest` tell at their end.
struct RunReport {
  let device: PCIAddress
  let interface: String
  let translation: TranslationInUse
  /// Whether the device was opened in debug mode.
  let isDebugged: Bool
  var faults: [Hit] = []
  /// What is missing among the device's faults, in words; nil when nothing is known to be.
  var missing: String?
  var counters: [(String, JSON)] = []

  /// A fault, and the mapping that lies or lay where it hit.
  struct Hit {
    let fault: Fault
    let mapping: IOVARange?
    let isLive: Bool
  }

  /// Adds faults, with the mapping that each hit if it lies or lay there.
  mutating func add(_ faults: [Fault], of mapping: IOVARange, isLive: Bool) {
    for fault in faults {
      let isThere = fault.iova.map(mapping.contains) ?? false
      self.faults.append(Hit(fault: fault, mapping: isThere ? mapping : nil, isLive: isLive))
    }
  }

  /// Counts up to now; what the hardware did is known of the simulated one, and of what this process told it.
  mutating func count(_ domain: DMADomain, _ machine: Machine) {
    missing = domain.faults.missing
    let statistics = domain.statistics, hardware = machine.simulated?.counters
    let own = domain.translation.owner == .process ? statistics : nil
    // Each of the kernel's invalidations has a wait of its own on the simulated hardware.
    counters = [
      ("system_calls", JSON(statistics.systemCalls)), ("maps", JSON(statistics.maps)),
      ("unmaps", JSON(statistics.unmaps)),
      (
        "invalidations", JSON(hardware.map { UInt64($0.invalidations + $0.processInvalidations) } ?? own?.invalidations)
      ),
      ("syncs", JSON(hardware.map { UInt64($0.invalidations + $0.processSyncs) } ?? own?.syncs)),
    ]
  }

  /// Writes the document, or the last lines of the story.
  func tell(_ recorder: Recorder, _ context: Context) -> Outcome {
    let passed = recorder.cases.count { $0.verdict == .pass }
    let skipped = recorder.cases.count { $0.verdict == .skip }
    if context.isJSON {
      context.document([
        ("device", .string(device.description)), ("interface", .string(interface)),
        ("translation", .string(translation.owner.rawValue)), ("debug", .bool(isDebugged)),
        (
          "cases",
          .array(
            recorder.cases.map {
              .object([
                ("name", .string($0.name)), ("verdict", .string($0.verdict.rawValue)),
                ("reason", .string($0.reason)),
              ])
            })
        ),
        ("bytes_verified", JSON(recorder.bytesVerified)), ("faults", .array(faults.map { .object($0.keys) })),
        ("faults_missing", JSON(missing)), ("counters", .object(counters)),
      ])
    } else {
      for fault in faults { context.say("fault: \(fault.line)") }
      if let missing { context.say("faults may be missing: \(missing)") }
      context.say(counters.map { "\($0.0) \($0.1 == .null ? "unknown" : $0.1.text)" }.joined(separator: ", "))
      context.say(
        "\(recorder.bytesVerified) bytes verified; \(passed) passed, \(recorder.failures) failed, \(skipped) skipped"
      )
    }
    return recorder.failures == 0 ? .fine : .refused
  }
}

extension RunReport {
  /// Begins with a device that was opened: says how, as the first case.
  init(_ device: Device, _ machine: Machine, _ recorder: Recorder, _ context: Context) {
    self.init(
      device: device.address, interface: machine.name(device.interface), translation: device.translation,
      isDebugged: device.dma.debugOptions != nil)
    recorder.add("open", .pass, Self.opening(device, machine))
    if isDebugged { context.sayDebugged("mistakes are told on stderr, and those that are made here on purpose too") }
  }

  /// What the first case says of a device that was opened: over what, whose the page tables are, and why.
  private static func opening(_ device: Device, _ machine: Machine) -> String {
    let way = "\(device.address) over \(machine.name(device.interface)). \(device.interfaceReason)"
    return "\(way). The page tables are the \(device.translation.owner.rawValue)'s: \(device.translation.reason)"
  }
}

extension RunReport.Hit {
  fileprivate var keys: [(String, JSON)] {
    let mapping: JSON =
      self.mapping.map { .object($0.keys + [("state", isLive ? "live" : "unmapped")]) } ?? .null
    return [
      ("iova", JSON(hex: fault.iova?.rawValue)),
      ("access", fault.access == .unknown ? .null : .string(fault.access.rawValue)), ("mapping", mapping),
      ("reason", .string(fault.reason)), ("kind", .string(fault.kind.rawValue)),
      ("source", .string(fault.source.rawValue)), ("stage", JSON(fault.stage)),
      ("story", fault.story.map { .object($0.keys) } ?? .null),
    ]
  }

  fileprivate var line: String {
    let place = mapping.map { ", in \($0), which is \(isLive ? "mapped" : "unmapped")" } ?? ""
    return "\(fault)\(place)" + (fault.story.map { "\n  \($0)" } ?? "")
  }
}
