/// Where a PCI function sits: domain, bus, device, function.
///
/// ```swift
/// let address = PCIAddress("03:00.0")          // 0000:03:00.0
/// ```
///
/// Text is accepted in every usual form, upper or lower case: `0000:03:00.0`, `03:00.0`, `3:0.0`, `pci:0000:03:00.0`,
/// `pci-0000:03:00.0` (as udev's `ID_PATH` writes it), and a path whose last component is an address with its domain.
/// The kernel's name of such an address is `pci_name()`, the entry in `/sys/bus/pci/devices`.
public struct PCIAddress: Hashable, Sendable {
  /// The PCI segment; 0 on most machines, above 0xffff for the domains that Intel VMD makes.
  public let domain: UInt32
  /// 0...255.
  public let bus: UInt8
  /// 0...31.
  public let device: UInt8
  /// 0...7.
  public let function: UInt8

  /// An address of its parts; nil when `device` is above 31 or `function` above 7.
  public init?(domain: UInt32 = 0, bus: UInt8, device: UInt8, function: UInt8) {
    guard device < 32, function < 8 else { return nil }
    (self.domain, self.bus, self.device, self.function) = (domain, bus, device, function)
  }

  /// Bus, device and function in 16 bits, as the IOMMU and its fault records know the device: the requester id.
  public var requesterID: UInt16 { UInt16(bus) << 8 | UInt16(device) << 3 | UInt16(function) }
}

extension PCIAddress: Comparable {
  /// By domain, then bus, device, function.
  public static func < (left: Self, right: Self) -> Bool {
    (left.domain, left.requesterID) < (right.domain, right.requesterID)
  }
}

extension PCIAddress: LosslessStringConvertible {
  /// Reads any usual form of an address, as listed at ``PCIAddress``; nil for all else. O(length).
  public init?(_ description: String) {
    var text = description[...].utf8
    // A path, or what a shell completes inside the directory: with its domain, so that no other file passes.
    let isPath = text.contains(UInt8(ascii: "/"))
    if text.last == UInt8(ascii: "/") { text = text.dropLast() }
    if let slash = text.lastIndex(of: UInt8(ascii: "/")) {
      text = text[text.index(after: slash)...]
    } else if !isPath, text.starts(with: "pci:".utf8) || text.starts(with: "pci-".utf8) {
      text = text.dropFirst(4)
    }
    self.init(parsing: text, domainRequired: isPath)
  }

  /// An entry of `/sys/bus/pci/devices` or the last component of a link to one: with its domain.
  package init?(sysfsName: Substring) { self.init(parsing: sysfsName.utf8, domainRequired: true) }

  private init?(parsing text: Substring.UTF8View, domainRequired: Bool) {
    var numbers: (UInt32, UInt32, UInt32) = (0, 0, 0)  // of the parts before the point, the last one in .2
    var parts = 0, digits = 0, firstDigits = 0, value: UInt32 = 0
    var rest = text
    while let byte = rest.popFirst() {
      if let digit = byte.hexDigitValue {
        digits += 1
        guard digits <= 8 else { return nil }
        value = value << 4 | UInt32(digit)
        continue
      }
      guard byte == UInt8(ascii: ":") || byte == UInt8(ascii: "."), digits > 0, parts < 3 else { return nil }
      numbers = (numbers.1, numbers.2, value)
      parts += 1
      // Only the first of three parts, the domain, has more than two digits.
      if parts == 1 { firstDigits = digits } else { guard digits <= 2 else { return nil } }
      (value, digits) = (0, 0)
      if byte == UInt8(ascii: ".") { break }
    }
    guard parts == 3 || (parts == 2 && firstDigits <= 2 && !domainRequired) else { return nil }
    guard rest.count == 1, let function = rest.first?.hexDigitValue, function < 8 else { return nil }
    guard let bus = UInt8(exactly: numbers.1), let device = UInt8(exactly: numbers.2) else { return nil }
    self.init(domain: numbers.0, bus: bus, device: device, function: function)
  }

  /// The kernel's form, such as `0000:03:00.0`: lower case, domain of at least four digits, always printed.
  public var description: String {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(16)
    var domainDigits = 4
    while domainDigits < 8, domain >> (4 * domainDigits) != 0 { domainDigits += 1 }
    bytes.appendHex(domain, digits: domainDigits)
    bytes.append(UInt8(ascii: ":"))
    bytes.appendHex(UInt32(bus), digits: 2)
    bytes.append(UInt8(ascii: ":"))
    bytes.appendHex(UInt32(device), digits: 2)
    bytes.append(UInt8(ascii: "."))
    bytes.appendHex(UInt32(function), digits: 1)
    return String(decoding: bytes, as: UTF8.self)
  }
}

extension UInt8 {
  /// 0...15 for an ASCII hexadecimal digit of either case.
  var hexDigitValue: UInt8? {
    switch self {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): self - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): self - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): self - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}

extension [UInt8] {
  /// Appends so many lower-case hexadecimal digits.
  fileprivate mutating func appendHex(_ value: UInt32, digits: Int) {
    for digit in stride(from: digits - 1, through: 0, by: -1) {
      let nibble = UInt8(value >> (4 * digit) & 15)
      append(nibble < 10 ? nibble + UInt8(ascii: "0") : nibble - 10 + UInt8(ascii: "a"))
    }
  }
}
