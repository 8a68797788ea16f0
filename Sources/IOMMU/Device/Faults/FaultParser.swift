import AddressSpace

/// Reads the kernel's log line by line and knows the faults in it.
///
/// A message may have several lines, which need not follow one another: a fault is told with its first line, as far as
/// it is known then, and told again with each further line.
package struct FaultParser: Sendable {
  package enum Outcome: Hashable, Sendable {
    /// The line is of no interest, or of no use yet.
    case nothing
    case fault(Fault)
    /// More about the fault with the same ``Fault/sequence``.
    case more(Fault)
    /// So many messages of an IOMMU were left out of the log.
    case suppressed(UInt64)
    /// An IOMMU's own queue was full, and it has lost events.
    case overflow
  }

  private var smmu = SMMUFaults()
  private var vtd = VTdFaults()

  package init() {}

  /// Reads the next line.
  package mutating func read(_ line: KernelLogLine) -> Outcome {
    let text = LineScanner(line.text)
    if text.has("DMAR:") { return vtd.read(text, line) }
    if text.has("AMD-Vi:") { return AMDFaults.read(text, line) }
    if text.has("callbacks suppressed") { return Self.suppressed(text) }
    if text.has("virtio_iommu") { return VirtioFaults.read(text, line) }
    if text.has("smmu") { return smmu.read(text, line) }
    return .nothing
  }

  /// The rate limit's note, after the function whose messages it held back: `dmar_fault: 43 callbacks suppressed`.
  private static func suppressed(_ text: LineScanner) -> Outcome {
    var text = text
    guard let function = text.upTo(": "), let count = text.decimal() else { return .nothing }
    let known = ["dmar_fault", "arm_smmu", "amd_iommu", "iommu_print_event", "viommu_fault"]
    return known.contains { function.hasPrefix($0) } ? .suppressed(count) : .nothing
  }
}

/// Reads a line of text from left to right. No input makes it trap.
struct LineScanner: Sendable {
  private var rest: ArraySlice<UInt8>

  /// The log has no longer lines; of what claims to be one, only the beginning is read.
  init(_ text: String) { rest = ArraySlice(text.utf8.prefix(1024)) }

  /// What is left, without spaces at either end.
  var remainder: String {
    var part = rest
    while part.first == UInt8(ascii: " ") { part.removeFirst() }
    while part.last == UInt8(ascii: " ") { part.removeLast() }
    return String(decoding: part, as: UTF8.self)
  }

  func has(_ text: String) -> Bool { index(of: text) != nil }

  /// Goes behind the next place where `text` is; false, and goes nowhere, when there is none.
  mutating func skip(past text: String) -> Bool {
    guard let index = index(of: text) else { return false }
    rest = rest[(index + text.utf8.count)...]
    return true
  }

  /// What lies before the next place where `text` is, and goes behind that; nil, and goes nowhere, when there is none.
  mutating func upTo(_ text: String) -> String? {
    guard let index = index(of: text) else { return nil }
    let part = rest[..<index]
    rest = rest[(index + text.utf8.count)...]
    return String(decoding: part, as: UTF8.self)
  }

  /// The next word, without the spaces before it; nil at the end.
  mutating func word() -> String? {
    while rest.first == UInt8(ascii: " ") { rest.removeFirst() }
    let word = rest.prefix { $0 != UInt8(ascii: " ") }
    rest = rest[word.endIndex...]
    return word.isEmpty ? nil : String(decoding: word, as: UTF8.self)
  }

  /// A hexadecimal number, with or without 0x; nil when there is none or it does not fit 64 bits.
  mutating func hexadecimal() -> UInt64? {
    if rest.starts(with: "0x".utf8) { rest.removeFirst(2) }
    return number(radix: 16)
  }

  /// A decimal number; nil when there is none or it does not fit 64 bits.
  mutating func decimal() -> UInt64? { number(radix: 10) }

  /// A number, hexadecimal after 0x, else decimal.
  mutating func prefixedNumber() -> UInt64? {
    rest.starts(with: "0x".utf8) ? hexadecimal() : decimal()
  }

  private mutating func number(radix: UInt64) -> UInt64? {
    var value: UInt64 = 0
    let digits = rest.prefix { ($0.hexDigitValue).map { UInt64($0) < radix } ?? false }
    for digit in digits {
      let (product, overflow) = value.multipliedReportingOverflow(by: radix)
      let (sum, carry) = product.addingReportingOverflow(UInt64(digit.hexDigitValue ?? 0))
      if overflow || carry { return nil }
      value = sum
    }
    rest = rest[digits.endIndex...]
    return digits.isEmpty ? nil : value
  }

  private func index(of text: String) -> Int? {
    let pattern = Array(text.utf8)
    guard let first = pattern.first, rest.count >= pattern.count else { return nil }
    return (rest.startIndex...(rest.endIndex - pattern.count)).first {
      rest[$0] == first && rest[$0...].starts(with: pattern)
    }
  }
}
