/// A JSON value whose objects keep their keys in order.
package enum JSON: Equatable, Sendable {
  case null
  case bool(Bool)
  case int(Int64)
  case uint(UInt64)
  /// Written as null when it is no finite number.
  case double(Double)
  case string(String)
  case array([JSON])
  case object([Member])

  package struct Member: Equatable, Sendable {
    package let key: String
    package let value: JSON
  }

  package static func object(_ members: [(String, JSON)]) -> JSON {
    .object(members.map { Member(key: $0, value: $1) })
  }
}

// MARK: - Making values

extension JSON {
  init(_ text: String?) { self = text.map { .string($0) } ?? .null }
  init(_ number: Int?) { self = number.map { .int(Int64($0)) } ?? .null }
  init(_ number: UInt64?) { self = number.map { .uint($0) } ?? .null }
  init(_ number: Double?) { self = number.map { .double($0) } ?? .null }
  init(_ flag: Bool?) { self = flag.map { .bool($0) } ?? .null }
  init(_ texts: [String]) { self = .array(texts.map { .string($0) }) }
  /// An address or a bit mask: a string, since JSON's numbers hold 53 bits in many readers.
  init(hex number: UInt64?) { self = number.map { .string("0x" + String($0, radix: 16)) } ?? .null }
  /// A PCI id: four digits.
  init(id: UInt16?) { self = id.map { .string("0x" + hexadecimal(UInt64($0), digits: 4)) } ?? .null }
}

extension JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
  package init(stringLiteral value: String) { self = .string(value) }
  package init(integerLiteral value: Int64) { self = .int(value) }
  package init(booleanLiteral value: Bool) { self = .bool(value) }
  package init(arrayLiteral elements: JSON...) { self = .array(elements) }
  package init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements) }
}

// MARK: - Text

extension JSON {
  /// The document: arrays and objects that hold others over several lines, flat ones on one.
  package var text: String {
    var text = ""
    write(to: &text, indent: 0)
    return text
  }

  private var isFlat: Bool {
    switch self {
    case .array(let values): values.allSatisfy(\.isScalar)
    case .object(let members): members.allSatisfy(\.value.isScalar)
    default: true
    }
  }

  private var isScalar: Bool {
    switch self {
    case .array(let values): values.isEmpty
    case .object(let members): members.isEmpty
    default: true
    }
  }

  private func write(to text: inout String, indent: Int) {
    switch self {
    case .null: text += "null"
    case .bool(let value): text += value ? "true" : "false"
    case .int(let value): text += String(value)
    case .uint(let value): text += String(value)
    case .double(let value): text += value.isFinite ? "\(value)" : "null"
    case .string(let value): Self.write(value, to: &text)
    case .array(let values):
      list(&text, indent, "[", "]", values) { $0.write(to: &$1, indent: indent + 1) }
    case .object(let members):
      list(&text, indent, "{", "}", members) { member, text in
        Self.write(member.key, to: &text)
        text += ": "
        member.value.write(to: &text, indent: indent + 1)
      }
    }
  }

  private func list<Element>(
    _ text: inout String, _ indent: Int, _ open: String, _ close: String, _ elements: [Element],
    _ write: (Element, inout String) -> Void
  ) {
    let isFlat = isFlat
    text += open
    for (index, element) in elements.enumerated() {
      if index > 0 { text += isFlat ? ", " : "," }
      if !isFlat { text += "\n" + String(repeating: "  ", count: indent + 1) }
      write(element, &text)
    }
    if !isFlat { text += "\n" + String(repeating: "  ", count: indent) }
    text += close
  }

  private static func write(_ value: String, to text: inout String) {
    text += "\""
    defer { text += "\"" }
    // Mostly nothing is to be escaped; scalar by scalar takes twenty times as long.
    if value.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") }) {
      text += value
      return
    }
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\n": text += "\\n"
      case "\t": text += "\\t"
      case "\r": text += "\\r"
      default:
        if scalar.value < 0x20 || scalar.value == 0x7f {
          text += "\\u" + hexadecimal(UInt64(scalar.value), digits: 4)
        } else {
          text.unicodeScalars.append(scalar)
        }
      }
    }
  }
}

/// At least so many lower-case digits.
func hexadecimal(_ value: UInt64, digits: Int) -> String {
  let text = String(value, radix: 16)
  return String(repeating: "0", count: max(0, digits - text.count)) + text
}
