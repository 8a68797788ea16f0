import ArgumentParser
import IOMMU

/// Why a device, or anything at all, can or cannot be driven.
struct Doctor: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Check what decides whether a device can be driven, and say what to do.",
    discussion: "Changes nothing, opens nothing, and needs no privilege: what cannot be read is unknown.")

  @OptionGroup var global: GlobalOptions
  @Argument(help: "The device; the machine alone without one.") var device: PCIAddress?

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let machine = try context.machineToLookAt(global)
    let found = try library { () throws(DMAError) in try machine.host.preflight(for: device) }
    if context.isJSON {
      context.document([
        ("device", JSON(device?.description)), ("verdict", .string(found.verdict.rawValue)),
        ("checks", .array(found.checks.map { .object($0.keys) })), ("unread", JSON(found.unread)),
      ])
    } else {
      for check in found.checks { show(check, context) }
      context.say()
      context.say(Self.summary(found))
    }
    return found.verdict == .fail ? .refused : .fine
  }

  private func show(_ check: Preflight.Check, _ context: Context) {
    context.say("\(Self.mark(check.verdict)) \(check.id.rawValue): \(check.meaning)")
    for evidence in check.evidence { context.say("         \(evidence.path) = \(evidence.value)") }
    if let culprit = check.culprit { context.say("         culprit: \(culprit)") }
    if let remedy = check.remedy { context.say("         to do: \(remedy)") }
  }

  private static func mark(_ verdict: Preflight.Verdict) -> String {
    switch verdict {
    case .ok: "[ok]    "
    case .warn: "[warn]  "
    case .fail: "[FAIL]  "
    case .unknown: "[?]     "
    case .notApplicable: "[-]     "
    }
  }

  private static func summary(_ found: Preflight) -> String {
    let subject = found.device?.description ?? "devices of this machine"
    let failed = found.checks.filter { $0.verdict == .fail }.map(\.id.rawValue).joined(separator: ", ")
    return switch found.verdict {
    case .ok, .notApplicable: "verdict: ok, nothing keeps \(subject) from being driven"
    case .warn: "verdict: warn, \(subject) can be driven, with the limits above"
    case .unknown: "verdict: unknown, not all that decides about \(subject) could be read"
    case .fail: "verdict: fail, \(subject) cannot be driven: \(failed)"
    }
  }
}

extension Preflight {
  /// What checks could not read.
  fileprivate var unread: [String] {
    checks.flatMap(\.evidence).filter { $0.value.hasPrefix("unreadable") }.map(\.path)
  }
}

extension Preflight.Check {
  fileprivate var keys: [(String, JSON)] {
    [
      ("id", .string(id.rawValue)), ("verdict", .string(verdict.rawValue)),
      (
        "evidence",
        .array(evidence.map { .object([("path", .string($0.path)), ("value", .string($0.value))]) })
      ),
      ("meaning", .string(meaning)), ("remedy", JSON(remedy)), ("culprit", JSON(culprit)),
    ]
  }
}
