/// Reads small files of sysfs and procfs, and remembers what it could not read or make sense of.
///
/// Nothing here throws or traps on what a tree holds: a value that is absent, unreadable or senseless is nil. Absent is
/// an answer where the caller says so (`optional`), such as a device with no driver; all else lands in ``unread``.
struct FileReader {
  let kernel: any Kernel
  /// Paths that could not be read, or whose content made no sense, in the order met.
  private(set) var unread: [String] = []

  init(_ kernel: any Kernel) { self.kernel = kernel }

  /// No file that is read here is longer, in bytes; config space is 4096, sysfs writes a page.
  static let byteLimit = 1 << 20

  mutating func note(_ path: String) { if !unread.contains(path) { unread.append(path) } }

  mutating func bytes(_ path: String, optional: Bool = false) -> [UInt8]? {
    do {
      let bytes = try kernel.readFile(path)
      if bytes.count <= Self.byteLimit { return bytes }
    } catch {
      if optional, error == .noEntry { return nil }
    }
    note(path)
    return nil
  }

  /// A text without the white space around it; nil also for binary garbage.
  mutating func text(_ path: String, optional: Bool = false) -> String? {
    guard let bytes = bytes(path, optional: optional) else { return nil }
    if let text = Field.text(Field.trimmed(bytes[...])) { return text }
    note(path)
    return nil
  }

  /// A number as sysfs writes it: `0x1af4`, or decimal; nil when it does not fit the type.
  mutating func number<Number: FixedWidthInteger>(_ path: String, optional: Bool = false) -> Number? {
    guard let bytes = bytes(path, optional: optional) else { return nil }
    if let number: Number = Field.number(Field.trimmed(bytes[...])) { return number }
    note(path)
    return nil
  }

  /// The last component of a link's target, such as the driver's name; nil when there is no link.
  mutating func linkName(_ path: String) -> String? {
    do {
      if let name = Field.lastComponent(try kernel.readLink(path)) { return name }
    } catch {
      if error == .noEntry { return nil }
    }
    note(path)
    return nil
  }

  /// The names in a directory; empty when it is absent and may be.
  mutating func names(_ path: String, optional: Bool = false) -> [String] {
    do { return try kernel.listDirectory(path) } catch {
      if !optional || error != .noEntry { note(path) }
      return []
    }
  }

  /// Whether there is something at a path; nil when even that cannot be told.
  func exists(_ path: String) -> Bool? {
    do {
      _ = try kernel.status(path)
      return true
    } catch {
      return error == .noEntry || error == .notDirectory ? false : nil
    }
  }
}

/// The small texts of sysfs: every function gives nil for what makes no sense, none traps.
enum Field {
  typealias Bytes = ArraySlice<UInt8>

  static func trimmed(_ bytes: Bytes) -> Bytes {
    var bytes = bytes
    while let last = bytes.last, last == 0x20 || (9...13).contains(last) { bytes.removeLast() }
    while let first = bytes.first, first == 0x20 || (9...13).contains(first) { bytes.removeFirst() }
    return bytes
  }

  /// UTF-8 without control characters but line ends and tabs.
  static func text(_ bytes: Bytes) -> String? {
    guard bytes.allSatisfy({ $0 >= 0x20 && $0 != 0x7f || $0 == 0x0a || $0 == 0x09 }) else { return nil }
    return String(validating: bytes, as: UTF8.self)
  }

  /// `0x` and hexadecimal digits, or decimal digits with an optional minus.
  static func number<Number: FixedWidthInteger>(_ bytes: Bytes) -> Number? {
    if bytes.starts(with: "0x".utf8) { return hex(bytes.dropFirst(2)) }
    let isNegative = bytes.first == UInt8(ascii: "-")
    guard let magnitude = digits(isNegative ? bytes.dropFirst() : bytes, radix: 10) else { return nil }
    if !isNegative { return Number(exactly: magnitude) }
    return magnitude <= UInt64(Int64.max) ? Number(exactly: -Int64(magnitude)) : nil
  }

  /// Hexadecimal digits without a prefix.
  static func hex<Number: FixedWidthInteger>(_ bytes: Bytes) -> Number? {
    digits(bytes, radix: 16).flatMap { Number(exactly: $0) }
  }

  private static func digits(_ bytes: Bytes, radix: UInt64) -> UInt64? {
    guard !bytes.isEmpty else { return nil }
    var value: UInt64 = 0
    for byte in bytes {
      guard let digit = byte.hexDigitValue, digit < radix else { return nil }
      let (product, tooBig) = value.multipliedReportingOverflow(by: radix)
      let (sum, overflow) = product.addingReportingOverflow(UInt64(digit))
      guard !tooBig, !overflow else { return nil }
      value = sum
    }
    return value
  }

  /// The fields between spaces and tabs.
  static func words(_ bytes: Bytes) -> [Bytes] { bytes.split { $0 == 0x20 || $0 == 0x09 } }

  static func lines(_ bytes: Bytes) -> [Bytes] { bytes.split(separator: 0x0a) }

  /// What stands behind the last slash; nil for none, for `.` and `..`, and for control characters.
  static func lastComponent(_ path: String) -> String? {
    let name = path.utf8.lastIndex(of: UInt8(ascii: "/")).map { path[path.index(after: $0)...] } ?? path[...]
    guard !name.isEmpty, name != ".", name != "..", name.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }) else {
      return nil
    }
    return String(name)
  }
}
