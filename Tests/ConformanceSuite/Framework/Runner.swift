import IOMMU

/// Runs cases one after the other and says how each ended.
public struct Runner {
  let environment: Environment
  /// Called with each line of output.
  let print: (String) -> Void

  /// A runner for a machine.
  public init(_ environment: Environment, print: @escaping (String) -> Void) {
    (self.environment, self.print) = (environment, print)
  }

  /// Runs the cases whose names contain the text.
  public func run(_ suites: [Suite], filter: String? = nil) -> [Outcome] {
    let cases = suites.flatMap(\.cases).filter { item in filter.map { item.name.contains($0) } ?? true }
    return cases.map { item in
      let outcome = run(item)
      print(outcome.line)
      return outcome
    }
  }

  private func run(_ item: ConformanceCase) -> Outcome {
    if let reason = item.reasonToSkip(in: environment) {
      return Outcome(name: item.name, verdict: .skip, reason: reason, milliseconds: 0)
    }
    let start = environment.kernel.now()
    var outcome = Outcome(name: item.name, verdict: .pass, milliseconds: 0)
    do {
      try item.run(in: environment)
    } catch {
      (outcome.verdict, outcome.reason) = (.fail, "\(error)")
    }
    outcome.milliseconds = (environment.kernel.now() &- start) / 1_000_000
    return outcome
  }

  /// The row as one line of JSON.
  public func json(_ outcomes: [Outcome]) -> String {
    let cases = outcomes.map { outcome in
      "{\"name\":\(quoted(outcome.name)),\"verdict\":\"\(outcome.verdict.rawValue)\","
        + "\"reason\":\(outcome.reason.map(quoted) ?? "null"),\"ms\":\(outcome.milliseconds)}"
    }
    return "{\"machine\":\(quoted(environment.machine)),\"interface\":\"\(environment.interface.rawValue)\","
      + "\"cases\":[\(cases.joined(separator: ","))]}"
  }

  private func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}

extension Outcome {
  /// The case in one line.
  public var line: String {
    switch verdict {
    case .pass: "ok \(name) \(milliseconds) ms"
    case .fail: "FAIL \(name): \(reason ?? "")"
    case .skip: "skip \(name): \(reason ?? "")"
    }
  }
}
