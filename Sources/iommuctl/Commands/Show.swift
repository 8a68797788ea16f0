import ArgumentParser
import IOMMU

/// All about one device: how it would be reached, and which addresses it could use.
struct Show: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Show a device: its interface, its translation, and its addresses.",
    discussion: """
      A device that is bound to vfio-pci, and that no process uses, is opened for a moment to ask which \
      addresses it can use, which resets it; --no-open leaves it alone.
      """)

  @OptionGroup var global: GlobalOptions
  @Argument(help: "The device, such as 0000:03:00.0 or 3:0.0.") var device: PCIAddress
  @Option(help: "Insist on an interface.") var interface: Interface?
  @Flag(inversion: .prefixedNo, help: "Open a device that is ready.") var open = true

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let machine = try context.machineToLookAt(global)
    let found = try library { () throws(DMAError) in try machine.host.device(device) }
    let reserved = try reservedRegions(found, machine)
    let reach = reach(found, machine)
    var candidates = TranslationCandidate.all(for: found, machine, reach.interface)
    if let used = reach.translation { candidates[1].note(used) }
    let chosen: (name: String?, reason: String) =
      reach.translation.map { ($0.owner.rawValue, $0.reason) } ?? TranslationCandidate.choice(of: candidates)
    let services = TranslationServices(found, machine, candidates[1])
    if context.isJSON {
      context.document(
        found.keys + [
          (
            "interface",
            .object([
              ("chosen", JSON(reach.interface.map(machine.name))), ("reason", JSON(reach.reason)),
            ])
          ),
          (
            "translation",
            .object([
              ("chosen", JSON(chosen.name)), ("reason", .string(chosen.reason)),
              ("candidates", .array(candidates.map { .object($0.keys) })),
              ("ats", services.map { .object($0.keys) } ?? .null),
            ])
          ),
          ("usable", reach.usable.map { .array($0.map { .object($0.keys) }) } ?? .null),
          (
            "reserved",
            reserved.map { regions in
              .array(regions.regions.map { .object($0.range.keys + [("type", .string($0.type.rawValue))]) })
            } ?? .null
          ),
          ("unread", JSON(found.unread + (reserved?.unread ?? []))),
        ])
    } else {
      context.say(found.summary)
      context.say("interface    \(reach.interface.map(machine.name) ?? "-"): \(reach.reason)")
      context.say("translation  \(chosen.name ?? "-"): \(chosen.reason)")
      for candidate in candidates { context.say("candidate    \(candidate.line)") }
      if let services { context.say("ats          \(services.line)") }
      for range in reach.usable ?? [] { context.say("usable       \(range)") }
      if reach.usable == nil { context.say("usable       not known before the device is opened") }
      for region in reserved?.regions ?? [] { context.say("reserved     \(region.range) \(region.type)") }
    }
    return .fine
  }

  private func reservedRegions(_ found: PCIDevice, _ machine: Machine) throws(Failure) -> ReservedRegions? {
    guard let group = found.group else { return nil }
    return try library { () throws(DMAError) in try machine.host.reservedRegions(ofGroup: group) }
  }

  /// How the device is reached, and what it can use; nil where only opening it would tell.
  private typealias Reach = (
    interface: Interface?, reason: String, usable: IOVARanges?, translation: TranslationInUse?
  )

  private func reach(_ found: PCIDevice, _ machine: Machine) -> Reach {
    guard open, !machine.host.isCaptured, found.status == .ready else { return expected(found, machine) }
    do throws(DMAError) {
      let device = try Device(device.description, on: machine.host, interface: interface)
      defer { device.close() }
      return (device.interface, device.interfaceReason, device.dma.usableRanges, device.translation)
    } catch {
      let expected = expected(found, machine)
      return (expected.interface, "\(expected.reason). It could not be opened: \(error)", nil, nil)
    }
  }

  /// What opening it would choose, by the files that are there.
  private func expected(_ found: PCIDevice, _ machine: Machine) -> Reach {
    if let interface { return (interface, "Asked for", nil, nil) }
    guard found.isBoundToVFIO else {
      // What binding a device takes besides is its status's to say; only what forbids it decides this.
      let isBindable = found.status == .bindable
      return (nil, (isBindable ? nil : found.reason) ?? "Chosen once the device is bound to vfio-pci", nil, nil)
    }
    let hasIOMMUFD = (try? machine.host.kernel.status("/dev/iommu")) != nil
    if hasIOMMUFD, found.cdev != nil {
      return (.iommufd, "The kernel has iommufd and a node for the device", nil, nil)
    }
    let lack = hasIOMMUFD ? "a node for the device" : "iommufd"
    return (.type1, "The kernel does not have \(lack)", nil, nil)
  }
}

/// An owner of page tables that a device could have.
private struct TranslationCandidate {
  let name: String
  /// nil when it cannot be told.
  var isPossible: Bool?
  var reason: String
  /// Why it is not chosen without being asked for, where it could be.
  var reasonToAsk: String?

  /// What opening the device told, where nothing did before.
  mutating func note(_ used: TranslationInUse) {
    guard isPossible == nil, reasonToAsk == nil else { return }
    (isPossible, reason) = (used.owner == .process, used.reason)
  }

  /// In the order of preference, the best last.
  static func all(for device: PCIDevice, _ machine: Machine, _ interface: Interface?) -> [Self] {
    let kernel: Self
    if let unit = device.unit ?? device.group.map({ "group \($0)" }) {
      kernel = Self(name: "kernel", isPossible: true, reason: "The kernel keeps the page tables of \(unit)")
    } else if device.unread.contains(where: { $0.hasSuffix("/iommu_group") }) {
      kernel = Self(name: "kernel", isPossible: nil, reason: "The device's IOMMU group could not be read")
    } else {
      kernel = Self(name: "kernel", isPossible: false, reason: "No IOMMU translates for the device")
    }
    let refusal =
      TranslationInUse.processRefusal(on: machine.host.kernel, interface, unit: device.unit)
      ?? (kernel.isPossible == true ? nil : kernel.reason)
    if refusal == nil, TranslationInUse.isDecidedByOpening(on: machine.host.kernel) {
      let ask = TranslationInUse.reasonToAsk(on: machine.host.kernel, unit: device.unit)
      let reason = ask ?? "The kernel tells when the device is opened"
      let isKnown = ask != nil && TranslationInUse.vtdIdentity(on: machine.host.kernel, device.unit!) != nil
      return [kernel, Self(name: "process", isPossible: isKnown ? true : nil, reason: reason, reasonToAsk: ask)]
    }
    let process = Self(
      name: "process", isPossible: refusal == nil,
      reason: refusal ?? "The kernel nests tables of this process over its own")
    return [kernel, process]
  }

  /// Which one opening the device would choose, and why; a nil name for none, or where it cannot be told.
  static func choice(of candidates: [Self]) -> (name: String?, reason: String) {
    let (kernel, process) = (candidates[0], candidates[1])
    guard kernel.isPossible == true else { return (nil, kernel.reason) }
    if let reason = process.reasonToAsk { return (kernel.name, reason) }
    guard let isPossible = process.isPossible else { return (nil, process.reason) }
    return isPossible ? (process.name, TranslationInUse.nests) : (kernel.name, process.reason)
  }

  var keys: [(String, JSON)] {
    [("name", .string(name)), ("possible", JSON(isPossible)), ("reason", .string(reason))]
  }
  var line: String {
    let answer = isPossible.map { $0 ? "possible" : "not possible" } ?? "unknown"
    return "\(name): \(answer). \(reason)"
  }
}

/// What becomes of a device's own translation (ATS) with page tables of the process, where these are possible.
private struct TranslationServices {
  let isAllowed: Bool?
  let reason: String

  init?(_ device: PCIDevice, _ machine: Machine, _ process: TranslationCandidate) {
    guard process.isPossible != false,
      let answer = TranslationInUse.deviceTranslation(on: machine.host.kernel, unit: device.unit)
    else { return nil }
    (isAllowed, reason) = answer
  }

  var keys: [(String, JSON)] { [("enabled", JSON(isAllowed)), ("reason", .string(reason))] }
  var line: String {
    let answer = isAllowed.map { $0 ? "on" : "off" } ?? "the kernel's"
    return "\(answer) with tables of the process. \(reason)"
  }
}

extension PCIDevice {
  fileprivate var summary: String {
    let ids = [vendor, device].map { $0.map { hexadecimal(UInt64($0), digits: 4) } ?? "????" }
    var lines = ["\(address)  \(ids[0]):\(ids[1])\(name.map { "  \($0)" } ?? "")"]
    lines.append("driver       \(driver ?? "-")")
    lines.append("group        \(group.map(String.init) ?? "-")")
    lines.append("iommu        \(unit ?? "-")")
    lines.append("node         \(cdev.map { "/dev/vfio/devices/\($0)" } ?? "-")")
    lines.append("numa node    \(numaNode.map(String.init) ?? "-")")
    lines.append("status       \(status.rawValue)\(reason.map { ": \($0)" } ?? "")")
    return lines.joined(separator: "\n")
  }
}

extension IOVARange {
  /// First and last address.
  var keys: [(String, JSON)] { [("start", JSON(hex: start.rawValue)), ("end", JSON(hex: last.rawValue))] }
}
