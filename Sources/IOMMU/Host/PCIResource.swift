/// A range of host addresses that a PCI device answers to, or that a bridge passes down: a line of `resource`.
public struct PCIResource: Hashable, Sendable {
  /// 0...5 for a BAR, 6 for the expansion ROM, above for what a bridge passes down.
  public let index: Int
  /// The first host address, or I/O port.
  public let start: UInt64
  /// The last one, inclusive.
  public let last: UInt64
  /// The kernel's `IORESOURCE_` flags.
  public let flags: UInt64

  /// Bytes; 0 stands for 2^64.
  public var byteCount: UInt64 { last - start &+ 1 }
  /// Whether it is memory, and not I/O ports. The kernel's flag is `IORESOURCE_MEM`.
  public var isMemory: Bool { flags & 0x200 != 0 }
  /// Whether reads have no side effect. The kernel's flag is `IORESOURCE_PREFETCH`.
  public var isPrefetchable: Bool { flags & 0x2000 != 0 }
  /// Whether it may lie above 4 GiB. The kernel's flag is `IORESOURCE_MEM_64`.
  public var is64Bit: Bool { flags & 0x10_0000 != 0 }
  /// Whether it has an address: the kernel's flags `IORESOURCE_UNSET` and `IORESOURCE_DISABLED` are clear.
  public var isAssigned: Bool { flags & 0x3000_0000 == 0 }

  /// A line such as `0x00000000fe800000 0x00000000fe803fff 0x0000000000140204`; nil for what makes no sense.
  static func parse(_ line: ArraySlice<UInt8>, index: Int) -> PCIResource? {
    let words = Field.words(line)
    guard words.count == 3, let start: UInt64 = Field.number(words[0]),
      let last: UInt64 = Field.number(words[1]),
      let flags: UInt64 = Field.number(words[2]), start <= last
    else { return nil }
    return PCIResource(index: index, start: start, last: last, flags: flags)
  }
}

extension FileReader {
  /// The lines of a device's `resource` that stand for something.
  mutating func resources(_ path: String) -> [PCIResource] {
    guard let bytes = bytes("\(path)/resource") else { return [] }
    var resources: [PCIResource] = []
    for (index, line) in Field.lines(bytes[...]).enumerated() {
      guard let resource = PCIResource.parse(line, index: index) else {
        note("\(path)/resource")
        continue
      }
      if resource.flags != 0 { resources.append(resource) }
    }
    return resources
  }
}
