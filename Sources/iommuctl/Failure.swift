import IOMMU

/// What the process ends with.
package enum Outcome: Int32 {
  case fine = 0
  case failed = 1
  case usage = 2
  /// Checks found problems, or an action was refused.
  case refused = 3
  case permission = 4
  case unsupported = 5
}

/// Why a subcommand gave up: the library's error, or a mistake in the arguments that shows only later.
enum Failure: Error {
  case library(DMAError)
  case usage(String)
  /// A file that holds no trace.
  case trace(String, TraceError)

  var status: Outcome {
    switch self {
    case .library(let error): Outcome(error.code)
    case .usage: .usage
    case .trace: .failed
    }
  }
}

extension Outcome {
  /// The one place that says which error ends in which code.
  init(_ code: DMAError.Code) {
    switch code {
    case .permission, .virtualFunctionToken: self = .permission
    case .noIOMMU, .noIOMMUMode, .notSupported: self = .unsupported
    // The library, or the kernel on its behalf, will not do it as things are.
    case .notBound, .groupNotViable, .unsafeInterrupts, .incompatibleDevice, .busy: self = .refused
    default: self = .failed
    }
  }
}

extension Failure {
  /// Writes the error to stderr.
  func tell(_ console: Console, command: String?, isJSON: Bool) {
    guard isJSON else { return console.err("iommuctl: \(text)\n") }
    let document: JSON = [
      "schema": 1, "command": JSON(command), "error": .object(keys(command)),
    ]
    console.err(document.text + "\n")
  }

  private var text: String {
    switch self {
    case .library(let error): error.description
    case .usage(let text): text
    case .trace(let path, let error): "\(path), \(error)"
    }
  }

  private func keys(_ command: String?) -> [(String, JSON)] {
    switch self {
    case .library(let error):
      [
        ("code", .string(error.code.name)), ("operation", .string(error.operation)),
        ("errno", JSON(error.errno?.name)), ("address", JSON(hex: error.address)),
        ("length_bytes", JSON(error.byteCount)), ("device", JSON(error.device)),
        ("detail", JSON(error.detail)), ("remedy", JSON(error.remedy)),
      ]
    case .usage(let text):
      [
        ("code", "usage"), ("operation", "parse arguments"), ("errno", .null), ("address", .null),
        ("length_bytes", .null), ("device", .null), ("detail", .string(text)),
        ("remedy", .string(IOMMUCtl.help(of: command))),
      ]
    case .trace(let path, let error):
      [
        ("code", "invalid-trace"), ("operation", "read trace"), ("errno", .null), ("address", .null),
        ("length_bytes", .null), ("device", .null), ("path", .string(path)), ("line", JSON(error.line)),
        ("field", .string(error.field)), ("detail", .string(error.description)),
        ("remedy", "`iommuctl bench map --trace-out FILE` writes traces"),
      ]
    }
  }
}

/// Runs a call of the library and passes its error on as a ``Failure``.
func library<Result: ~Copyable>(_ body: () throws(DMAError) -> Result) throws(Failure) -> Result {
  do throws(DMAError) { return try body() } catch { throw .library(error) }
}
