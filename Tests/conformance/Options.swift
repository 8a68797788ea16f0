import ConformanceSuite
import IOMMU

/// What the command line says.
struct Options {
  var interface = Interface.iommufd
  var translation = TranslationChoice.kernel
  var machine: String?
  var isSimulated = false
  var filter: String?
  var suites: [Suite] = [.conformance]
  /// Where the row goes as JSON; nil prints it after `RESULT `, `-` without.
  var json: String?
  var listsOnly = false
  /// How long and from which seed random programs run.
  var steps: Int?, seed: UInt64?
  /// Be a process that maps so much on a device, waits, and ends so: what ``ClosingProcess`` is told.
  var holds: String?
  var mapCount = 1000
  var end = ClosingProcess.End.close
  /// Bind the devices and do nothing else.
  var bindsOnly = false
  /// Give the nodes of the first edu device to the group of users who drive devices.
  var grants = false

  static let usage = """
    usage: conformance --interface iommufd|type1 [--translation kernel|process] [--machine NAME] [--simulated]
                       [--filter TEXT] [--list] [--bind] [--grant]
                       [--steps N] [--seed N] [--hold DEVICE [--maps N] [--end close|exit]]
                       [--suite conformance|dma|counts|unprivileged|negative|all[,…]] [--json FILE|-]
    """

  struct Wrong: Error, CustomStringConvertible {
    let description: String
  }

  init(_ arguments: some Sequence<String>) throws {
    var rest = arguments.makeIterator()
    func number<Number: FixedWidthInteger>(_ option: String) throws -> Number {
      let text = try value(option)
      guard let known = Number(text), known > 0 else {
        throw Wrong(description: "\(option) wants a number, not \(text)")
      }
      return known
    }
    func value(_ option: String) throws -> String {
      guard let text = rest.next() else { throw Wrong(description: "\(option) wants a value\n\(Self.usage)") }
      return text
    }
    while let option = rest.next() {
      switch option {
      case "--interface":
        let text = try value(option)
        guard let known = Interface(rawValue: text) else { throw Wrong(description: "no interface \(text)") }
        interface = known
      case "--translation":
        let text = try value(option)
        guard let known = TranslationChoice(rawValue: text), known != .automatic else {
          throw Wrong(description: "no translation \(text)")
        }
        translation = known
      case "--machine": machine = try value(option)
      case "--simulated": isSimulated = true
      case "--filter": filter = try value(option)
      case "--suite": suites = try Self.suites(value(option))
      case "--steps": steps = try number(option)
      case "--seed": seed = try number(option)
      case "--hold": holds = try value(option)
      case "--maps": mapCount = try number(option)
      case "--end":
        let text = try value(option)
        guard let known = ClosingProcess.End(rawValue: text) else { throw Wrong(description: "no end \(text)") }
        end = known
      case "--json": json = try value(option)
      case "--list": listsOnly = true
      case "--bind": bindsOnly = true
      case "--grant": (bindsOnly, grants) = (true, true)
      default: throw Wrong(description: "what is \(option)?\n\(Self.usage)")
      }
    }
  }

  private static func suites(_ text: String) throws -> [Suite] {
    if text == "all" { return Suite.allCases.filter { $0 != .unprivileged } }
    return try text.split(separator: ",").map { name in
      guard let suite = Suite(rawValue: String(name)) else { throw Wrong(description: "no suite \(name)") }
      return suite
    }
  }
}
