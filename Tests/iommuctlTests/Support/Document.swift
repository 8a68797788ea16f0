import Foundation

/// A JSON document read by another parser than this package's writer.
struct Document: CustomStringConvertible {
  private let value: Any

  private init(_ value: Any) { self.value = value }

  init(parsing text: String) throws {
    value = try JSONSerialization.jsonObject(with: Data(text.utf8), options: [.fragmentsAllowed])
  }

  subscript(key: String) -> Document { Document((value as? [String: Any])?[key] ?? Missing()) }
  subscript(index: Int) -> Document {
    let list = list
    return index < list.count ? list[index] : Document(Missing())
  }

  var text: String? { value as? String }
  var number: Int? { value as? Int }
  var real: Double? { value as? Double ?? number.map { Double($0) } }
  var flag: Bool? { value as? Bool }
  var list: [Document] { (value as? [Any])?.map { Document($0) } ?? [] }
  var texts: [String] { list.compactMap(\.text) }
  var isNull: Bool { value is NSNull }
  var keys: Set<String> { Set((value as? [String: Any])?.keys.map(\.self) ?? []) }
  /// `0x` and hexadecimal digits.
  var address: UInt64? {
    text.flatMap { $0.hasPrefix("0x") ? UInt64($0.dropFirst(2), radix: 16) : nil }
  }
  var description: String { "\(value)" }

  private struct Missing: CustomStringConvertible { var description: String { "missing" } }
}
